"""``metrics.jsonl``: the numbers of a run, one JSON object per line, without gaps or duplicates after a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.run_folder import RUN, folder_lost
from mkd_plugin.engine.run_utils import images_per_step, is_due, is_training, log_interval, runs_by_epoch, when_run_ends
from mkd_plugin.registry import HOOKS
from mkd_plugin.utils.files import atomic_write, json_dict

METRICS = 'metrics.jsonl'
DROPPED = 'metrics.dropped.jsonl'
Row = dict[str, Any]


@HOOKS.register_module()
class MetricsHook(Hook):
    """Writes ``metrics.jsonl`` from rank 0.

    * ``mode='train'``: ``iter`` (completed iterations), ``epoch``, ``stage``, and all that the run logs: losses, gradient
      norm and times as means over the iterations since the previous line, the rest as current values; ``images_per_s`` over
      all processes. Lines are written where the log's are, at the end of an epoch, before validation, at a checkpoint and
      when the run stops.
    * ``mode='val'``: the evaluator's metrics after so many iterations.
    * ``run``: the run's id, as in its checkpoints.

    NaN and infinity become null. Values come from mmengine's message hub, which reads them from the device for a line.

    A resumed run continues the file. Lines past the iteration it resumes from, which are repeated, damaged lines, and those
    of other runs are moved to ``metrics.dropped.jsonl``. A repeated validation adds no second line.
    """

    priority = 'VERY_HIGH'  # before the hooks that stop a run, so that the line with the NaN is written

    def __init__(self) -> None:
        self.path: Path | None = None  # None on other ranks, and while nothing is trained
        self.pending = 0  # iterations since the last line

    def before_run(self, runner: Runner) -> None:
        """Register the last line, to be written when the run ends."""
        if is_training(runner):
            when_run_ends(runner, lambda error: self._end(runner, error))

    def before_train(self, runner: Runner) -> None:
        """Move the lines of iterations that are about to be repeated out of the file."""
        self.every = log_interval(runner)
        self.pending, self.position = 0, position_of(runner, done=runner.iter)
        self.validated: list[int] = []  # iterations
        if is_main_process():
            self.path = Path(runner.work_dir, METRICS)
            damaged = keep_until(self.path, runner.iter, run=runner.message_hub.get_info(RUN, None))
            if damaged:
                runner.logger.warning(
                    f'{self.path} is damaged: {damaged} lines that cannot be read are now in {DROPPED}.'
                )
            if self.path.is_file():
                self.validated = [row['iter'] for row in read_metrics(self.path) if row.get('mode') == 'val']

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write a line if one is due."""
        if self.path is None:
            return
        self.position = position_of(runner, done=runner.iter + 1)
        self.pending += 1
        if is_due(runner, self.every):
            self._write_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write the iterations before the checkpoint, so that a run resumed from it finds them in the file.

        A checkpoint is saved at the end of every stage, so no line covers two stages.
        """
        self._write_train(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the evaluator's metrics."""
        if self.path is None or not metrics or runner.iter in self.validated:
            return
        scalars = {name: float(value) for name, value in metrics.items() if is_scalar(value)}
        self._write_train(runner)  # keep the lines in order
        position = {'iter': runner.iter, **({'epoch': runner.epoch} if 'epoch' in self.position else {})}
        self._append(runner, {'mode': 'val', **position, **scalars})

    def _write_train(self, runner: Runner) -> None:
        """Write the line of the iterations since the last one."""
        if self.path is None or not self.pending:
            return
        row: Row = {'mode': 'train', **self.position}
        for name, buffer in runner.message_hub.log_scalars.items():
            if name.startswith('train/'):
                name = name.removeprefix('train/')
                averaged = runner.log_processor.mean_pattern.search(name)
                row[name] = float(buffer.mean(self.pending) if averaged else buffer.current())
        if row.get('time'):
            row['images_per_s'] = images_per_step(runner) / row['time']
        self._append(runner, row)
        self.pending = 0

    def _append(self, runner: Runner, row: Row) -> None:
        assert self.path is not None
        run = runner.message_hub.get_info(RUN, None)
        row = row if run is None else {**row, 'run': run}
        try:
            with self.path.open('a') as file:
                file.write(json.dumps({name: json_number(value) for name, value in row.items()}) + '\n')
        except OSError as error:
            if not self.path.parent.is_dir():
                raise folder_lost(self.path.parent) from error
            # do not stop the run; the checkpoint hook reports a full disk in more detail
            runner.logger.warning(f'{self.path} cannot be written ({error}): no more lines of this run.')
            self.path = None

    def _end(self, runner: Runner, error: BaseException | None) -> None:
        with suppress(*([] if error is None else [RuntimeError])):  # losses on a device that failed cannot be read
            self._write_train(runner)
        self.path = None
        if error is not None:
            runner.visualizer.close()  # otherwise TensorBoard loses its last two minutes


def position_of(runner: Runner, *, done: int) -> Row:
    """Completed iterations, and the epoch and stage if the run counts them."""
    epoch = runner.epoch + 1 if runs_by_epoch(runner) else None
    row = {'iter': done, 'epoch': epoch, 'stage': runner.message_hub.get_info('mkd_stage', None)}
    return {name: value for name, value in row.items() if value is not None}


def is_scalar(value: Any) -> bool:
    """Whether an evaluator's value is a single number; a per-class table is not."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) or (hasattr(value, 'dtype') and getattr(value, 'ndim', 1) == 0)


def json_number(value: Any) -> Any:
    """Round a float to seven digits; None if it is not finite."""
    if not isinstance(value, float):
        return value
    return float(f'{value:.7g}') if math.isfinite(value) else None


def parse_rows(path: str | Path) -> Iterator[tuple[bytes, Row | None]]:
    """(line, its content) of a file; None for the incomplete line of a killed run and for damaged ones."""
    for line in Path(path).read_bytes().splitlines(keepends=True):
        row = json_dict(line)
        yield line, row if isinstance(row.get('iter'), int) else None


def read_metrics(path: str | Path) -> list[Row]:
    """Read the lines of a ``metrics.jsonl``. Raises FileNotFoundError if there is none."""
    return [row for _, row in parse_rows(path) if row is not None]


def keep_until(path: Path, iteration: int, *, run: str | None = None) -> int:
    """Keep a run's lines up to an iteration, and append all others to ``metrics.dropped.jsonl``.

    The file is replaced atomically, if at all. Returns the number of damaged lines; the last one, which a killed run may
    leave incomplete, does not count.
    """
    kept: list[bytes] = []
    dropped: list[bytes] = []
    damaged = 0
    for line, row in parse_rows(path) if path.is_file() else ():
        mine = row is not None and row['iter'] <= iteration and (run is None or row.get('run', run) == run)
        (kept if mine else dropped).append(line if line.endswith(b'\n') else line + b'\n')
        incomplete = line.startswith(b'{"') and not line.endswith(b'\n')  # what a killed run was writing
        damaged += row is None and not incomplete
    if dropped:
        with path.with_name(DROPPED).open('ab') as file:
            file.writelines(dropped)
        with atomic_write(path, 'wb') as file:
            file.writelines(kept)
    return damaged
