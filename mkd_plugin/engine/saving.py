"""Checkpoints that are due by the count of steps or by time, written beside training."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner, save_checkpoint
from mmengine.utils import apply_to
from torch import Tensor, is_tensor

from mkd_plugin.engine.checkpoints import explained, point_to, save_atomically, write_beside, write_whole_file
from mkd_plugin.engine.run_folder import is_half_written
from mkd_plugin.engine.run_utils import (
    at_optimizer_step,
    is_due,
    is_training,
    log_interval,
    on_main,
    runs_by_epoch,
    when_run_ends,
)
from mkd_plugin.registry import HOOKS, check_names
from mkd_plugin.utils.files import TEMPORARY, remove_path

RECENT = 'recent.pth'
SHARE = 0.02  # of the time, for which checkpoints may hold training
ALLOWED = [name for name in inspect.signature(CheckpointHook.__init__).parameters if name not in ('self', 'kwargs')]


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with atomic writes beside training, and with checkpoints by time.

    * Training waits only while the state is copied to main memory; a thread writes it, of sharded runs one in each process.
      The next checkpoint waits for it. If it cannot be written, the run stops at its next step. The log says for how
      long training was held.
    * A checkpoint is written to a temporary file, flushed to disk and renamed; only then is an old one deleted.
    * A checkpoint does not contain accumulated gradients. One that is due between two optimiser steps is written at the
      next step, under its own name (``epoch_3.pth`` then includes a few iterations of epoch 4).
    * ``recent.pth`` is written where the log has a line if the last checkpoint is older than ``minutes``, and at the end of
      a stage if no other one is due there. It is deleted when the run is complete.
    * Checkpoints hold training for at most 2 % of the time (of ``minutes``, in the beginning). One that is due but would
      exceed that is left out, unless it is the last or that of a stage's end.

    Args:
        minutes: Time after which ``recent.pth`` is written. It is not with ``interval=-1``.
        options: Those of mmengine's ``CheckpointHook``.

    Raises:
        ValueError: ``minutes`` is not positive, or an option is unknown (mmengine's hook ignores it silently).
        OSError: A checkpoint cannot be written. The message names the last good one, which is kept.
    """

    def __init__(self, *, minutes: float = 15.0, **options: Any) -> None:
        check_names('AtomicCheckpointHook', options, [*ALLOWED, 'minutes'])
        if not isinstance(minutes, int | float) or not minutes > 0:
            raise ValueError(f'AtomicCheckpointHook: minutes={minutes!r}: it must be a positive number, such as 15.')
        super().__init__(**options)
        self.minutes = minutes
        self.postponed: int | None = None
        self.wanted = False  # at the end of a stage
        self.writing: Future[None] | None = None
        self.path = ''  # of the last checkpoint
        self.stall = self.held = 0.0  # seconds for which the last checkpoint, and all of them, held training

    def before_run(self, runner: Runner) -> None:
        """Wait for the writing thread when the run ends, however it does."""
        if is_training(runner):
            when_run_ends(runner, lambda error: self._finish_writing(runner))

    def before_train(self, runner: Runner) -> None:
        """Delete the temporary files of a killed run, and no others."""
        super().before_train(runner)
        self.every, self.began, self.saved = log_interval(runner), time.monotonic(), time.monotonic()
        if is_main_process():
            for folder in {str(self.out_dir), runner.work_dir}:
                for temporary in Path(folder).glob(f'*{TEMPORARY}') if '://' not in folder else ():
                    if is_half_written(temporary.name, self.filename_tmpl):
                        remove_path(temporary)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Write a checkpoint that is due or was postponed."""
        if self.writing is not None and self.writing.done():
            self._finish_writing(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        here = dict(epoch=runner.epoch, iter=runner.iter + 1)
        if self.postponed is not None:
            self._save_checkpoint_with_step(runner, self.postponed, here)
        # at the end of an epoch or of the run, another checkpoint may be due
        inside = here['iter'] % (len(runner.train_dataloader) if runs_by_epoch(runner) else runner.max_iters) > 0
        if self.wanted or (inside and is_due(runner, self.every) and self._is_time()):
            self._save_recent(runner, here)

    def after_train_epoch(self, runner: Runner) -> None:
        """Write a checkpoint that is due, also by time or because a stage ends."""
        super().after_train_epoch(runner)
        if self.wanted or (runner.iter < runner.max_iters and self._is_time()):
            self._save_recent(runner, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Let whoever saves wait for the checkpoint before."""
        self._finish_writing(runner)

    def after_train(self, runner: Runner) -> None:
        """Delete ``recent.pth``: the last checkpoint is newer."""
        self._finish_writing(runner)
        super().after_train(runner)
        recent = self.file_backend.join_path(self.out_dir, RECENT)
        if is_main_process() and self.path not in ('', recent):
            self._remove(recent)

    def _is_time(self) -> bool:
        """Whether the last checkpoint is old, on the clock of the first process."""
        old = time.monotonic() - self.saved >= 60 * self.minutes
        return self.interval > 0 and on_main(lambda: bool(old and self._is_affordable()))

    def _is_affordable(self) -> bool:
        """Whether another checkpoint like the last one keeps the total within the share of the time."""
        return self.held + self.stall <= SHARE * max(time.monotonic() - self.began, 60 * self.minutes)

    def _save_recent(self, runner: Runner, meta: dict[str, Any]) -> None:
        """Write ``recent.pth``, or wait for the next optimiser step."""
        if at_optimizer_step(runner, meta['iter']):
            self._save(runner, RECENT, meta, outdated=[])

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if isinstance(runner, AtomicRunner):  # mmengine was given one for the best checkpoint
            runner = runner.runner
        if not at_optimizer_step(runner, meta['iter']):
            self.postponed = step
            return
        self.postponed = None
        name = self.filename_tmpl.format(step)
        if not self.wanted and meta['iter'] < runner.max_iters and not on_main(self._is_affordable):
            runner.logger.info(
                f'{name} is left out: checkpoints would hold training for more than {SHARE:.0%} of the time.'
            )
            return
        kept: list[int] = [*(old for old in getattr(self, 'keep_ckpt_ids', []) if old != step), step]
        if self.max_keep_ckpts > 0:
            # includes the one to be deleted: if the run is killed before that, the resumed run deletes it
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._save(runner, name, meta, outdated=kept[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else [])
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)  # a deque of length max_keep_ckpts

    def _save(self, runner: Runner, name: str, meta: dict[str, Any], *, outdated: list[int]) -> None:
        """Copy the state, and let the thread write it and then delete the checkpoints of outdated steps."""
        began = time.monotonic()
        self._finish_writing(runner)
        options = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        self.path = self.file_backend.join_path(self.out_dir, name)
        write = self._begin(runner, name, meta=meta, **options)
        if write is not None:
            self.writing = write_beside(partial(self._write, write, self.path, runner.work_dir, outdated))
        self.wanted, self.saved = False, time.monotonic()
        self.stall = self.saved - began
        self.held += self.stall

    def _begin(self, runner: Runner, name: str, **options: Any) -> Callable[[Path | str], Any] | None:
        """Copy what this process writes, and return what writes it to a path; None if it writes nothing."""
        strategy: Any = getattr(runner, 'strategy', None)
        if hasattr(strategy, 'finish') and '://' not in self.path:
            strategy.beside = True
            try:
                with explained(self.path, runner.work_dir):
                    runner.save_checkpoint(str(self.out_dir), name + TEMPORARY, **options)
            finally:
                strategy.beside = False
            finish = strategy.finish
            return lambda temporary: finish and finish()
        state = take_state(runner, **options)
        backends = dict(file_client_args=self.file_client_args, backend_args=self.backend_args)
        return None if state is None else (lambda path: save_checkpoint(state, str(path), **backends))

    def _write(self, write: Callable[[Path | str], Any], path: str, work_dir: str, outdated: list[int]) -> None:
        """Write a checkpoint; in the thread."""
        if '://' in path:
            write(path)
        else:
            write_whole_file(Path(path), write)
        if is_main_process():
            point_to(path, work_dir=work_dir)
            self._forget(outdated)

    def _finish_writing(self, runner: Runner) -> None:
        """Wait for the thread, and say for how long the checkpoint held training."""
        writing, self.writing = self.writing, None
        if writing is None:
            return
        with explained(self.path, runner.work_dir):
            writing.result()
        share = self.held / max(time.monotonic() - self.began, 1e-3)
        runner.logger.info(
            f'{Path(self.path).name} is written. It held training for {self.stall:.2f} s, all checkpoints for {share:.2%} '
            'of the time.'
        )

    def _forget(self, steps: list[int]) -> None:
        """Delete the checkpoints of these steps."""
        for step in steps:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))

    def _remove(self, path: str) -> None:
        """Delete a checkpoint, a file or a folder of shares, if it is there."""
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Delete the best checkpoint so far once the better one is written; mmengine deletes it before."""
        if not self.save_best:
            return
        several = len(self.key_indicators) > 1
        paths = self.best_ckpt_path_dict if several else self.__dict__
        before = {name: paths[name] for name in (self.key_indicators if several else ['best_ckpt_path'])}
        paths.update(dict.fromkeys(before))
        super()._save_best_checkpoint(AtomicRunner(runner), metrics)
        for name, path in before.items():
            if paths[name] is None:  # none is better
                paths[name] = path
            elif path not in (None, paths[name]) and is_main_process():
                self._remove(path)


class StateTaken(Exception):
    """Ends ``runner.save_checkpoint`` before it writes."""


class TakeState(Hook):
    """Copies what ``runner.save_checkpoint`` is about to write, and stops it."""

    state: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Copy the state to the CPU: training changes the tensors in place, and strategies leave moments on the GPU."""
        if is_main_process():
            own = {key: apply_to(checkpoint[key], is_tensor, Tensor.cpu) for key in {'optimizer'} & checkpoint.keys()}
            self.state = copy.deepcopy({**checkpoint, **own})
        raise StateTaken


def take_state(runner: Runner, **options: Any) -> dict[str, Any] | None:
    """Return a copy of what ``runner.save_checkpoint`` would write, in main memory; None on other processes than the first."""
    taker = TakeState()
    runner._hooks.append(taker)  # after all others, whatever their priority
    try:
        with suppress(StateTaken):
            runner.save_checkpoint(runner.work_dir, RECENT, **options)
    finally:
        runner._hooks.remove(taker)
    return taker.state


class AtomicRunner:
    """A runner whose ``save_checkpoint`` is :func:`save_atomically`, to pass to mmengine's own code."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, **options: Any) -> None:
        """Save atomically; arguments as the runner's."""
        save_atomically(self.runner, out_dir, filename, **options)
