"""dBOT's stages: at each breakpoint the student becomes the teacher and starts anew."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mkd_plugin.engine.checkpoints import save_atomically
from mkd_plugin.engine.strategies import whole_parameters
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.teachers import BootstrappedTeacher
from mkd_plugin.registry import HOOKS


@HOOKS.register_module()
class StageHook(Hook):
    """Runs a pre-training in stages (dBOT, Sec. 3).

    Numbering: teacher 0 is the initial teacher; stage s ≥ 1 trains student s from teacher s − 1; at its end student s
    becomes teacher s. At a breakpoint

    1. teacher ← student,
    2. student and heads draw new weights, the same on every rank,
    3. the learning-rate schedule starts again, so that every stage has its own warm-up and reaches the configured peak.

    What a breakpoint does depends on nothing but the seed and the stage, and the teacher counts its promotions in the
    checkpoint: a run resumed before, at or after a breakpoint does the same there as one that never stopped.

    The state at the end of stage s is kept for good as ``stage_<s>.pth`` (and teacher 0 as ``stage_0.pth``).

    Args:
        lengths: Length of each stage, in epochs or iterations as the loop counts; they add up to the run's length.
        teacher: Name of the bootstrapped teacher in the algorithm's ``teachers``.
        reset_student: Draw new weights for student and heads (84.5 against 84.2 without).
        reset_optimizer: Also forget the optimiser's moments; the reference code keeps them.

    Raises:
        ValueError: A length is not positive; when the run starts: the lengths do not add up to it, a warm-up is longer
            than a stage, there is no such teacher.
    """

    priority = 'ABOVE_NORMAL'  # before the hooks that log, save or step a schedule

    def __init__(
        self,
        *,
        lengths: Sequence[int],
        teacher: str = 'boot',
        reset_student: bool = True,
        reset_optimizer: bool = False,
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f'lengths={list(lengths)}: every stage needs a positive length.')
        self.lengths, self.ends = list(lengths), list(accumulate(lengths))
        self.teacher_name = teacher
        self.reset_student, self.reset_optimizer = reset_student, reset_optimizer
        self.schedule: list[dict[str, Any]] = []

    def before_run(self, runner: Runner) -> None:
        """Check the stages against the run, before any work is done."""
        loop = runner.train_loop
        self.by_epoch = hasattr(loop, 'run_epoch')
        unit, total = ('epochs', loop.max_epochs) if self.by_epoch else ('iterations', loop.max_iters)
        if self.ends[-1] != total:
            raise ValueError(
                f'The stages {self.lengths} add up to {self.ends[-1]} {unit}, but the run has {total}. '
                f"Set train_cfg's length to {self.ends[-1]}, or change StageHook's lengths."
            )
        teachers = bare_model(runner).teachers
        if self.teacher_name not in teachers or not isinstance(teachers[self.teacher_name], BootstrappedTeacher):
            bootstrapped = [name for name, teacher in teachers.items() if isinstance(teacher, BootstrappedTeacher)]
            raise ValueError(
                f"StageHook promotes the teacher '{self.teacher_name}', but the BootstrappedTeachers of this model are "
                f'{bootstrapped}.'
            )
        schedule = runner.cfg.get('param_scheduler') or []
        self.schedule = [dict(schedule)] if isinstance(schedule, dict) else [dict(entry) for entry in schedule]
        for length in self.lengths:
            stage_schedulers(self.schedule, self.lengths[0], length)  # raises if a warm-up is too long

    def before_train(self, runner: Runner) -> None:
        """Keep teacher 0, once, and say which stage runs."""
        if runner.iter == 0:  # and not the epoch: a run can be resumed in the middle of the first
            save_stage(runner, 0, epoch=0)
        self._announce(runner, self._stage(self._progress(runner)))

    def before_train_epoch(self, runner: Runner) -> None:
        """Start a stage where one starts."""
        if self.by_epoch:
            self._start_stage_if_due(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Start a stage where one starts."""
        if not self.by_epoch:
            self._start_stage_if_due(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep the student at the end of a stage."""
        if self.by_epoch and runner.epoch + 1 in self.ends:
            save_stage(runner, self.ends.index(runner.epoch + 1) + 1, epoch=runner.epoch + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Keep the student at the end of a stage."""
        if not self.by_epoch and runner.iter + 1 in self.ends:
            save_stage(runner, self.ends.index(runner.iter + 1) + 1, epoch=runner.epoch)

    def _progress(self, runner: Runner) -> int:
        return runner.epoch if self.by_epoch else runner.iter

    def _stage(self, progress: int) -> int:
        """Number of the stage, from 1, that runs after so many epochs or iterations."""
        return min(sum(end <= progress for end in self.ends) + 1, len(self.ends))

    def _start_stage_if_due(self, runner: Runner) -> None:
        stage = self._stage(self._progress(runner))
        teacher: BootstrappedTeacher = bare_model(runner).teachers[self.teacher_name]  # type: ignore[assignment]
        if teacher.promotions >= stage - 1:
            return
        model = bare_model(runner)
        runner.optim_wrapper.zero_grad()  # what was accumulated belongs to the student before
        with whole_parameters(runner.model):
            teacher.promote(model.backbone)
            if self.reset_student:
                redraw(model, seed=runner.seed + stage)
        if self.reset_optimizer:
            runner.optim_wrapper.optimizer.state.clear()
        restart_schedule(runner, stage_schedulers(self.schedule, self.lengths[0], self.lengths[stage - 1]))
        self._announce(runner, stage)

    def _announce(self, runner: Runner, stage: int) -> None:
        unit = 'epochs' if self.by_epoch else 'iterations'
        runner.message_hub.update_info('mkd_stage', stage)
        runner.logger.info(
            f'Stage {stage} of {len(self.lengths)}: student {stage} learns from teacher {stage - 1} '
            f'for {self.lengths[stage - 1]} {unit}.'
        )


def bare_model(runner: Runner) -> MaskedDistiller:
    """The algorithm, without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def save_stage(runner: Runner, stage: int, *, epoch: int) -> None:
    """Write ``stage_<s>.pth``: weights only, beside the run's ordinary checkpoints and never deleted by them."""
    save_atomically(
        runner,
        runner.work_dir,
        f'stage_{stage}.pth',
        save_optimizer=False,
        save_param_scheduler=False,
        meta=dict(epoch=epoch, iter=runner.iter),
    )


def redraw(model: MaskedDistiller, *, seed: int) -> None:
    """New weights for student and heads, the same on every rank, without touching the run's random state."""
    devices = [parameter.device.index for parameter in model.parameters() if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        model.reset_student()
    for parameter in model.parameters():
        broadcast(parameter.data)


def stage_schedulers(schedule: Sequence[dict[str, Any]], first_length: int, length: int) -> list[dict[str, Any]]:
    """The schedule of a stage: that of the first, whose end (and T_max) moves to the end of this stage.

    Args:
        schedule: mmengine's ``param_scheduler`` for the first stage.
        first_length: Length of the first stage.
        length: Length of this stage.

    Raises:
        ValueError: Part of the schedule, such as the warm-up, is longer than the stage, or none reaches its end.
    """
    stretched = []
    for entry in schedule:
        entry = copy.deepcopy(entry)
        begin, end = entry.get('begin', 0), entry.get('end')
        if end == first_length:
            entry['end'] = length
            if entry.get('T_max') == first_length - begin:
                entry['T_max'] = length - begin
        if begin >= length or (end is not None and end > first_length) or entry.get('end', 0) > length:
            raise ValueError(
                f'{entry["type"]} runs from {begin} to {end}, but a stage has only {length}: the schedule (and its warm-up) '
                'must fit into every stage. Write param_scheduler for the first stage alone; later ones repeat it.'
            )
        stretched.append(entry)
    return stretched


def restart_schedule(runner: Runner, schedule: list[dict[str, Any]]) -> None:
    """Start the schedule again from the configured rates.

    mmengine's schedulers multiply the *current* rate, so a second warm-up chained behind a cosine would peak near zero.
    """
    for group in runner.optim_wrapper.param_groups:
        for key in [key for key in group if key.startswith('initial_')]:
            group[key.removeprefix('initial_')] = group[key]
    if schedule:
        runner.param_schedulers = runner.build_param_scheduler(schedule)
