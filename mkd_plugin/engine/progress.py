"""A progress bar for training in a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mkd_plugin.engine.run_utils import images_per_step, is_due, is_training, log_interval, runs_by_epoch, when_run_ends
from mkd_plugin.engine.teacher_updates import TeacherUpdateHook
from mkd_plugin.registry import HOOKS

REFRESH = 0.25  # seconds
WIDE = 100  # columns
SPEED_WINDOW = 300.0  # seconds


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows stage, epoch, loss, learning rate, images/s and time left below the log's lines, on a terminal.

    If standard error is no terminal (a file, SLURM, a notebook, CI), nothing is shown and the log is unchanged. Loss and
    rate are read from the log at its interval; in between only the iteration count moves, so no step waits for a device.
    The bar is drawn in the main thread, because a drawing thread could hold rich's lock while data workers are forked.

    Args:
        enabled: False never shows the bar.
    """

    priority = 'LOW'

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.bar: Progress | None = None
        self.redirected: list[tuple[logging.StreamHandler[Any], TextIO]] = []

    def before_run(self, runner: Runner) -> None:
        """Create the bar, and restore the terminal when the run ends."""
        if self.enabled and is_training(runner) and is_main_process() and is_interactive(sys.stderr, os.environ):
            when_run_ends(runner, lambda error: self._stop())
            console = Console(stderr=True)
            wide = console.width >= WIDE
            self.separator = '  ' if wide else ' '
            self.bar = Progress(
                TextColumn('{task.fields[where]}', markup=False),
                BarColumn(bar_width=None),
                TextColumn('{task.fields[values]}', markup=False),
                TimeRemainingColumn(),
                *([TextColumn('left')] if wide else []),
                console=console,
                auto_refresh=False,
                expand=True,
                speed_estimate_period=SPEED_WINDOW,
                redirect_stdout=sys.stdout.isatty(),  # a log that is redirected to a file stays unchanged
            )

    def before_train(self, runner: Runner) -> None:
        """Start at the run's position."""
        if self.bar is None:
            return
        self.every, self.images, self.drawn = log_interval(runner), images_per_step(runner), 0.0
        self.stages = next((len(hook.lengths) for hook in runner.hooks if isinstance(hook, TeacherUpdateHook)), 0) or 1
        self.logged: list[str] = []
        self.task = self.bar.add_task('', total=runner.max_iters, completed=runner.iter, where='', values='')
        self._start(runner)
        self._show(runner, done=runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance the bar."""
        if self.bar is None:
            return
        if not self.logged or is_due(runner, self.every):
            self.logged = self._values(runner)
        self._show(runner, done=runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show the progress of validation."""
        if self.bar is not None:
            where = f'validation {batch_idx + 1}/{len(runner.val_dataloader)}'
            self._show(runner, done=runner.iter, where=where)

    def _show(self, runner: Runner, *, done: int, where: str | None = None) -> None:
        """Update the bar, and draw it unless it was drawn a moment ago."""
        assert self.bar is not None
        speed = self.bar.tasks[0].speed
        values = [*self.logged, f'{brief(speed * self.images)} img/s'] if speed else self.logged
        parts = [where] if where else position_text(runner, done=done, stages=self.stages)
        self.bar.update(self.task, completed=done, where=self.separator.join(parts), values=self.separator.join(values))
        if time.monotonic() - self.drawn >= REFRESH or done >= runner.max_iters:
            try:
                self.bar.refresh()
            except OSError:  # the terminal was closed: continue without the bar
                self._stop()
            self.drawn = time.monotonic()

    def _values(self, runner: Runner) -> list[str]:
        """Loss and learning rate as logged."""
        scalars, window = runner.message_hub.log_scalars, runner.log_processor.window_size
        loss, rate = scalars.get('train/loss'), scalars.get('train/lr')
        shown = [] if loss is None else [f'loss {loss.mean(window):.4g}']
        return shown if rate is None else [*shown, f'lr {rate.current():.1e}']

    def _start(self, runner: Runner) -> None:
        """Show the bar, and point the log's handlers to the streams that rich has put in place, above the bar."""
        assert self.bar is not None
        streams = {name: getattr(sys, name) for name in ('stdout', 'stderr')}
        self.bar.start()
        for handler in runner.logger.handlers:
            for name, stream in streams.items():
                if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                    self.redirected.append((handler, stream))
                    handler.setStream(getattr(sys, name))

    def _stop(self) -> None:
        """Restore the terminal and the log's handlers."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()
        for handler, stream in self.redirected:
            handler.setStream(stream)
        self.bar, self.redirected = None, []


def is_interactive(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Whether a bar can be drawn on a stream: a terminal that can move its cursor, outside CI.

    rich's own test also returns True under ``FORCE_COLOR``.
    """
    ci = environment.get('CI', '').lower() not in ('', '0', 'false')
    return stream is not None and stream.isatty() and not ci and environment.get('TERM') not in ('dumb', 'unknown')


def position_text(runner: Runner, *, done: int, stages: int) -> list[str]:
    """Stage, epoch and batch, or stage and iteration."""
    stage = [f'stage {runner.message_hub.get_info("mkd_stage", 1)}/{stages}'] if stages > 1 else []
    if not runs_by_epoch(runner):
        return [*stage, f'iteration {done}/{runner.max_iters}']
    length = len(runner.train_dataloader)
    epoch = min(runner.epoch, runner.max_epochs - 1)
    return [*stage, f'epoch {epoch + 1}/{runner.max_epochs}', f'{done - epoch * length}/{length}']


def brief(number: float) -> str:
    """Format a number with three significant digits, or as an integer from 100 on."""
    return f'{number:.0f}' if number >= 100 else f'{number:.3g}'
