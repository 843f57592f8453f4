"""The numbers of a run in one file, a line each, without gaps or doubles however often it was killed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner

from mkd_plugin.engine.checkpoints import HALF, put_in_place
from mkd_plugin.engine.preemption import is_training, when_run_ends
from mkd_plugin.registry import HOOKS

METRICS = 'metrics.jsonl'
Row = dict[str, Any]


@HOOKS.register_module()
class MetricsHook(Hook):
    """Writes ``metrics.jsonl``, one JSON object a line, from rank 0.

    * ``mode='train'``: ``iter`` (how many are done), ``epoch``, ``stage``, and everything the run logs: losses, gradient
      norm and times as means over the iterations since the line before, the rest as it is now; ``images_per_s`` over all
      processes. Lines come where the log's do, at the end of an epoch, before validation, at a checkpoint and when the run
      stops.
    * ``mode='val'``: what the evaluator gave after so many iterations.

    NaN and infinity are null. The values are those that mmengine's message hub has: nothing is read from a device.

    A resumed run goes on in the same file: lines past the iteration it was resumed at are dropped, because those
    iterations come again. A run that starts anew therefore starts the file anew (an older run's lines are still in its
    ``<time>/vis_data/scalars.json``).

    Args:
        interval: Iterations between two lines; the ``LoggerHook``'s by default.

    Raises:
        ValueError: ``interval`` is not positive.
    """

    priority = 'VERY_HIGH'  # before the hooks that stop a run: the line with the NaN is to be there

    def __init__(self, *, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'interval={interval}: it must be at least 1, or None for the interval of the log.')
        self.interval = interval
        self.path: Path | None = None  # where to write; None on other ranks, and while nothing is trained
        self.pending = 0  # iterations since the last line

    def before_run(self, runner: Runner) -> None:
        """Be called when the run ends."""
        if is_training(runner):
            when_run_ends(runner, lambda error: self._end(runner, error))

    def before_train(self, runner: Runner) -> None:
        """Drop what the run is about to do again."""
        self.every = self.interval or log_interval(runner)
        self.pending, self.at = 0, Place(runner, done=runner.iter)
        if is_main_process():
            self.path = Path(runner.work_dir, METRICS)
            keep_until(self.path, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Write a line where one is due."""
        if self.path is None:
            return
        self.at = Place(runner, done=runner.iter + 1)
        self.pending += 1
        if is_due(runner, self.every):
            self._write_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Let a run that is resumed from this checkpoint find every iteration before it in the file.

        ``TeacherUpdateHook`` saves at the end of a stage, so no line is of two stages.
        """
        self._write_train(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write what the evaluator gave."""
        if self.path is None or not metrics:
            return
        scalars = {name: float(value) for name, value in metrics.items() if is_scalar(value)}
        self._write_train(runner)  # the lines stay in the run's order
        position = {'iter': runner.iter, **({'epoch': runner.epoch} if self.at.epoch is not None else {})}
        self._append(runner, {'mode': 'val', **position, **scalars})

    def _write_train(self, runner: Runner) -> None:
        """Write the line of the iterations since the last one."""
        if self.path is None or not self.pending:
            return
        row: Row = {'mode': 'train', **self.at.as_row()}
        for name, buffer in runner.message_hub.log_scalars.items():
            if name.startswith('train/'):
                name = name.removeprefix('train/')
                averaged = runner.log_processor.mean_pattern.search(name)
                row[name] = float(buffer.mean(self.pending) if averaged else buffer.current())
        if row.get('time'):
            row['images_per_s'] = images_a_step(runner) / row['time']
        self._append(runner, row)
        self.pending = 0

    def _append(self, runner: Runner, row: Row) -> None:
        assert self.path is not None
        try:
            with self.path.open('a') as file:
                file.write(json.dumps({name: plain(value) for name, value in row.items()}) + '\n')
        except OSError as error:  # the checkpoints matter; their hook says more about a full disk
            runner.logger.warning(f'{self.path} cannot be written ({error}): no more lines of this run.')
            self.path = None

    def _end(self, runner: Runner, error: BaseException | None) -> None:
        self._write_train(runner)
        self.path = None
        if error is not None:
            runner.visualizer.close()  # or TensorBoard's last two minutes would be lost


class Place:
    """Where a run is after an iteration: a stage's number and an epoch's if the run counts them."""

    def __init__(self, runner: Runner, *, done: int) -> None:
        self.done = done
        self.epoch = runner.epoch + 1 if hasattr(runner.train_loop, 'run_epoch') else None
        self.stage = runner.message_hub.get_info('mkd_stage', None)

    def as_row(self) -> Row:
        """What of it is known."""
        named = {'iter': self.done, 'epoch': self.epoch, 'stage': self.stage}
        return {name: value for name, value in named.items() if value is not None}


def log_interval(runner: Runner) -> int:
    """The interval of the run's ``LoggerHook``; 50 without one."""
    return next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 50)


def is_due(runner: Runner, interval: int) -> bool:
    """Whether the log has a line after this iteration, or an epoch ends.

    Unlike ``batch_idx``, which begins at 0 again in the middle of an epoch, this is the same in a resumed run.
    """
    done = runner.iter + 1
    if not hasattr(runner.train_loop, 'run_epoch'):
        return bool(done % interval == 0)
    length = len(runner.train_dataloader)
    batch = done - runner.epoch * length
    return batch % interval == 0 or batch == length


def images_a_step(runner: Runner) -> int:
    """Images that all processes load for one iteration."""
    loader = runner.train_dataloader
    size = loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, 'batch_size', 1)
    return int(size) * get_world_size()


def is_scalar(value: Any) -> bool:
    """Whether an evaluator's value is one number; a per-class table is not."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) or (hasattr(value, 'dtype') and getattr(value, 'ndim', 1) == 0)


def plain(value: Any) -> Any:
    """A float to seven digits, or None where JSON has no number."""
    if not isinstance(value, float):
        return value
    return float(f'{value:.7g}') if math.isfinite(value) else None


def rows_of(lines: list[str]) -> Iterator[tuple[str, Row]]:
    """(line, its content), without what a killed run left half written."""
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, Mapping) and isinstance(row.get('iter'), int):
            yield line, dict(row)


def read_metrics(path: str | Path) -> list[Row]:
    """The lines of a ``metrics.jsonl``.

    Raises:
        FileNotFoundError: There is none.
    """
    return [row for _, row in rows_of(Path(path).read_text().splitlines())]


def keep_until(path: Path, iteration: int) -> None:
    """Drop the lines past an iteration, and half ones; the file is replaced as a whole, or not touched."""
    if not path.is_file():
        return
    text = path.read_text()
    kept = ''.join(f'{line}\n' for line, row in rows_of(text.splitlines()) if row['iter'] <= iteration)
    if kept != text:
        half = path.with_name(path.name + HALF)
        half.write_text(kept)
        put_in_place(half, path)
