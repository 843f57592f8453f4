"""Teachers that change during a run: momentum teachers after every step, bootstrapped ones from stage to stage.

Learning-rate schedules follow the length of the run and of its stages.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mkd_plugin.engine.checkpoints import save_atomically
from mkd_plugin.engine.run_utils import accumulated_iterations, at_optimizer_step, bare_model, runs_by_epoch
from mkd_plugin.engine.saving import AtomicCheckpointHook
from mkd_plugin.engine.sharding import readable_student, whole_parameters
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.protocols import Progress, Stages, Teacher
from mkd_plugin.registry import HOOKS

WARM_UP_SHARE = 0.1  # our choice: a shorter stage keeps its warm-up up to this share of its length


@HOOKS.register_module()
class TeacherUpdateHook(Hook):
    """Drives everything of a :class:`MaskedDistiller` that changes with the progress of a run; idle for other models.

    After every optimiser step it calls the model's ``after_step``: momentum teachers and ramps follow. If the teachers ask
    for stages (dBOT, Sec. 3), it divides the run into them. Numbering: teacher 0 is the initial teacher; stage s ≥ 1
    trains student s from teacher s − 1; at its end student s becomes teacher s. At the start of each later stage

    1. teacher ← student,
    2. student and heads draw new weights, the same on every rank,
    3. the learning-rate schedule starts again, so that every stage has its own warm-up and reaches the configured peak.

    The length of the run (``train_cfg.max_epochs`` or ``max_iters``) is stated once: stages and schedule are fitted to it
    (:func:`fit_schedule`). What the start of a stage does depends on nothing but the seed and the stage, and the teacher
    counts its promotions in the checkpoint: a run resumed before, at or after it does the same as one that never stopped.

    The state at the end of stage s is kept for good as ``stage_<s>.pth`` (and teacher 0 as ``stage_0.pth``).

    Raises:
        ValueError: When the run starts: it is too short for its stages; the teachers ask for different stages.
    """

    priority = 'ABOVE_NORMAL'  # before the hooks that log, save or step a schedule

    def before_run(self, runner: Runner) -> None:
        """Divide the run into stages and fit the schedule, before any work is done."""
        model = bare_model(runner)
        self.model = model if isinstance(model, MaskedDistiller) else None
        self.lengths: list[int] = []
        if self.model is None:
            return
        loop = runner.train_loop
        self.by_epoch = runs_by_epoch(runner)
        self.stages = self.model.stages or Stages((1,))
        self.saves_stages = self.model.stages is not None
        self.lengths = self.stages.lengths(loop.max_epochs if self.by_epoch else loop.max_iters)
        self.ends = list(accumulate(self.lengths))
        self.schedule = schedule_of(runner.cfg)
        self.every_step = any(
            type(teacher).after_step is not Teacher.after_step for teacher in self.model.teachers.values()
        ) or any(objective.scheduled for objective in self.model.objectives.values())
        first = self._fit(1)
        if first != self.schedule and runner.iter == 0:  # a FlexibleRunner resumes before it calls this
            restart_schedule(runner, first)

    def before_train(self, runner: Runner) -> None:
        """Keep teacher 0, once, and log which stage runs."""
        if self.model is None:
            return
        self.model.begin_training(self._progress(runner, runner.iter))
        if self.saves_stages:
            if runner.iter == 0:  # not the epoch: a run can be resumed in the middle of the first
                save_stage(runner, 0, epoch=0, iteration=0)
            self._announce(runner, self._stage(runner))

    def before_train_epoch(self, runner: Runner) -> None:
        """Start a stage where one starts."""
        if self.model is not None and self.by_epoch:
            self._start_stage_if_due(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Start a stage where one starts."""
        if self.model is not None and not self.by_epoch:
            self._start_stage_if_due(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep the student at the end of a stage."""
        if self.model is not None and self.by_epoch and self.saves_stages and runner.epoch + 1 in self.ends:
            save_stage(runner, self.ends.index(runner.epoch + 1) + 1, epoch=runner.epoch + 1, iteration=runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Let teachers follow, though not after an iteration that only accumulated gradients; keep a stage's student."""
        if self.model is None:
            return
        done = runner.iter + 1
        if self.every_step and at_optimizer_step(runner, done):
            with readable_student(self.model):
                self.model.after_step(self._progress(runner, done))
        if not self.by_epoch and self.saves_stages and done in self.ends:
            save_stage(runner, self.ends.index(done) + 1, epoch=runner.epoch, iteration=done)

    def _progress(self, runner: Runner, iterations: int) -> Progress:
        accumulation = accumulated_iterations(runner)
        return Progress(-(-iterations // accumulation), -(-runner.max_iters // accumulation))

    def _fit(self, stage: int) -> list[dict[str, Any]]:
        return fit_schedule(self.schedule, self.lengths[stage - 1], by_epoch=self.by_epoch)

    def _stage(self, runner: Runner) -> int:
        """Number of the present stage, from 1."""
        done = runner.epoch if self.by_epoch else runner.iter
        return min(sum(end <= done for end in self.ends) + 1, len(self.ends))

    def _start_stage_if_due(self, runner: Runner) -> None:
        assert self.model is not None
        stage = self._stage(runner)
        promotions = [teacher.promotions for teacher in self.model.teachers.values() if teacher.stages is not None]
        if not promotions or min(promotions) >= stage - 1:
            return
        runner.optim_wrapper.zero_grad()  # what was accumulated belongs to the student before
        with readable_student(self.model):
            self.model.promote_teachers()
        if self.stages.reset_student:
            with whole_parameters(self.model.backbone, *self.model.objectives.values()):
                redraw(self.model, seed=runner.seed + stage)
        if self.stages.reset_optimizer:
            runner.optim_wrapper.optimizer.state.clear()
        restart_schedule(runner, self._fit(stage))
        self._announce(runner, stage)

    def _announce(self, runner: Runner, stage: int) -> None:
        unit = 'epochs' if self.by_epoch else 'iterations'
        runner.message_hub.update_info('mkd_stage', stage)
        runner.logger.info(
            f'Stage {stage} of {len(self.lengths)}: student {stage} learns from teacher {stage - 1} '
            f'for {self.lengths[stage - 1]} {unit}.'
        )


def save_stage(runner: Runner, stage: int, *, epoch: int, iteration: int) -> None:
    """Write ``stage_<s>.pth``: weights only, beside the run's ordinary checkpoints and never deleted with them.

    At the end of a stage, a checkpoint to resume from is written as well.
    """
    save_atomically(
        runner,
        runner.work_dir,
        f'stage_{stage}.pth',
        save_optimizer=False,
        save_param_scheduler=False,
        meta=dict(epoch=epoch, iter=iteration),
    )
    for hook in runner.hooks if stage else []:
        if isinstance(hook, AtomicCheckpointHook):
            hook.wanted = hook.interval > 0


def redraw(model: MaskedDistiller, *, seed: int) -> None:
    """Draw new weights for student and heads, the same on every rank, without touching the run's random state."""
    devices = [parameter.device.index for parameter in model.parameters() if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        model.reset_student()
    parts: list[nn.Module] = [model.backbone, *model.objectives.values()]
    for parameter in [parameter for part in parts for parameter in part.parameters()]:
        broadcast(parameter.data)


def fit_schedule(schedule: Sequence[dict[str, Any]], length: int, *, by_epoch: bool) -> list[dict[str, Any]]:
    """Fit mmengine's ``param_scheduler`` to a run or stage of another length than the one it was written for.

    What ends with the schedule ends with the run. A warm-up keeps its length, up to a tenth of the new one, or up to its
    share of the old one if that is more. Entries counted in the other unit than the run stay as they are.

    Args:
        schedule: Entries of ``param_scheduler``; the latest ``end`` is the length it was written for.
        length: Length of the run or stage, in epochs or iterations.
        by_epoch: Whether the run is counted in epochs.
    """
    own = [entry for entry in schedule if entry.get('by_epoch', True) == by_epoch]
    written = max((entry.get('end') or 0 for entry in own), default=0)

    def moved(point: int) -> int:
        return length if point == written else min(point, round(length * max(point / written, WARM_UP_SHARE)))

    fitted = []
    for entry in schedule:
        entry = copy.deepcopy(dict(entry))
        fitted.append(entry)
        if not written or entry.get('by_epoch', True) != by_epoch or length == written:
            continue
        begin, end = entry.get('begin', 0), entry.get('end')
        entry['begin'] = moved(begin)
        if end is not None:
            entry['end'] = moved(end)
            if entry.get('T_max') == end - begin:
                entry['T_max'] = entry['end'] - entry['begin']
            if entry['end'] <= entry['begin']:  # a warm-up that no longer has a step
                fitted.pop()
    return fitted


def schedule_of(cfg: Any) -> list[dict[str, Any]]:
    """Read the entries of a config's ``param_scheduler``."""
    schedule = cfg.get('param_scheduler') or []
    return [dict(schedule)] if isinstance(schedule, dict) else [dict(entry) for entry in schedule]


def restart_schedule(runner: Runner, schedule: list[dict[str, Any]]) -> None:
    """Start a schedule from the configured rates.

    mmengine's schedulers multiply the *current* rate, so a second warm-up chained behind a cosine would peak near zero.
    """
    for group in runner.optim_wrapper.param_groups:
        for key in [key for key in group if key.startswith('initial_')]:
            group[key.removeprefix('initial_')] = group[key]
    if schedule:
        runner.param_schedulers = runner.build_param_scheduler(schedule)
