"""Periodic checkpoints that survive being killed while they are written."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mkd_plugin.engine.atomic import HALF, point_to, remove, save_atomically
from mkd_plugin.engine.randomness import at_optimizer_step
from mkd_plugin.registry import HOOKS

__all__ = ['AtomicCheckpointHook']

ALLOWED = [name for name in inspect.signature(CheckpointHook.__init__).parameters if name not in ('self', 'kwargs')]


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's hook, made safe.

    * A checkpoint is written beside the old one, flushed to disk and renamed; only then is an old one deleted.
    * Gradients being accumulated are not part of a checkpoint: one that is due amid them is written at the next step of
      the optimiser, under its own name (``epoch_3.pth`` then holds a few iterations of epoch 4).

    Args:
        options: Those of mmengine's ``CheckpointHook``.

    Raises:
        ValueError: It has no such option (it would drop it without a word).
        OSError: A checkpoint cannot be written; the last good one is named, and is still there.
    """

    def __init__(self, **options: Any) -> None:
        unknown = sorted(set(options) - set(ALLOWED))
        if unknown:
            raise ValueError(f'AtomicCheckpointHook has no option {unknown}. It has {ALLOWED}, as CheckpointHook.')
        super().__init__(**options)
        self.postponed: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Delete what a killed run left half written."""
        super().before_train(runner)
        if is_main_process() and '://' not in str(self.out_dir):
            for half in Path(self.out_dir).glob(f'*{HALF}'):
                remove(half)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Write what is due, or was postponed."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.postponed is not None:
            self._save_checkpoint_with_step(runner, self.postponed, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if not at_optimizer_step(runner, meta['iter']):
            self.postponed = step
            return
        kept: list[int] = [*(old for old in getattr(self, 'keep_ckpt_ids', []) if old != step), step]
        if self.max_keep_ckpts > 0:
            # with the one to be deleted: if the run is killed before that, it is deleted when the run is resumed
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        options = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        backend = dict(file_client_args=self.file_client_args, backend_args=self.backend_args)
        # FlexibleRunner takes no position from `meta`: amid an epoch it must be told not to count to its end
        by_epoch = self.by_epoch and meta['epoch'] > runner.epoch
        save_atomically(runner, self.out_dir, name, meta=meta, by_epoch=by_epoch, **options, **backend)
        self.postponed = None
        if is_main_process():
            point_to(self.last_ckpt, work_dir=runner.work_dir)
        if self.max_keep_ckpts > 0:
            self._forget(kept[: -self.max_keep_ckpts])
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)  # a deque that holds max_keep_ckpts

    def _forget(self, steps: list[int]) -> None:
        for step in steps if is_main_process() else []:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(AtomicRunner(runner), metrics)


class AtomicRunner:
    """A runner whose ``save_checkpoint`` is :func:`save_atomically`, for code of the host that calls it."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, **options: Any) -> None:
        """As the runner's."""
        save_atomically(self.runner, out_dir, filename, **options)
