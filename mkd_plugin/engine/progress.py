"""A progress bar where someone is looking."""

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

from mkd_plugin.engine.metrics import images_a_step, is_due, log_interval
from mkd_plugin.engine.preemption import is_training, when_run_ends
from mkd_plugin.engine.teacher_updates import TeacherUpdateHook
from mkd_plugin.registry import HOOKS

REFRESH = 0.25  # seconds
WIDE = 100  # columns from which on there is room to spare
MEMORY = 300.0  # seconds over which the speed is estimated


@HOOKS.register_module()
class ProgressHook(Hook):
    """On a terminal: stage, epoch, loss, rate, images/s and time left, below the lines of the log.

    Where standard error is no terminal (a file, SLURM, a notebook, CI) nothing is shown or changed: the log's lines are
    what they would be without it. Loss and rate are taken from the log at its interval; in between only the count of
    iterations moves, so no step waits for a device. It draws in the main thread: a thread of its own could hold rich's
    lock while the workers that load data are forked.

    Args:
        enabled: False never shows it.
    """

    priority = 'LOW'

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.bar: Progress | None = None
        self.redirected: list[tuple[logging.StreamHandler[Any], TextIO]] = []

    def before_run(self, runner: Runner) -> None:
        """Be called when the run ends: the terminal has to be given back."""
        if self.enabled and is_training(runner) and is_main_process() and someone_looks(sys.stderr, os.environ):
            when_run_ends(runner, lambda error: self._stop())
            console = Console(stderr=True)
            self.gap = '  ' if console.width >= WIDE else ' '
            self.bar = Progress(
                TextColumn('{task.fields[where]}', markup=False),
                BarColumn(bar_width=None),
                TextColumn('{task.fields[values]}', markup=False),
                TimeRemainingColumn(),
                *([TextColumn('left')] if console.width >= WIDE else []),
                console=console,
                auto_refresh=False,
                expand=True,
                speed_estimate_period=MEMORY,
                redirect_stdout=sys.stdout.isatty(),  # a file that the log is sent to stays as it is
            )

    def before_train(self, runner: Runner) -> None:
        """Begin where the run is."""
        if self.bar is None:
            return
        self.every, self.images, self.drawn = log_interval(runner), images_a_step(runner), 0.0
        self.stages = next((len(hook.lengths) for hook in runner.hooks if isinstance(hook, TeacherUpdateHook)), 0) or 1
        self.logged: list[str] = []
        self.task = self.bar.add_task('', total=runner.max_iters, completed=runner.iter, where='', values='')
        self._start(runner)
        self._show(runner, done=runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Move on."""
        if self.bar is None:
            return
        if not self.logged or is_due(runner, self.every):
            self.logged = self._values(runner)
        self._show(runner, done=runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Say what takes the time."""
        if self.bar is not None:
            where = f'validation {batch_idx + 1}/{len(runner.val_dataloader)}'
            self._show(runner, done=runner.iter, where=where)

    def _show(self, runner: Runner, *, done: int, where: str | None = None) -> None:
        """Update the bar, and draw it if it is a while ago."""
        assert self.bar is not None
        speed = self.bar.tasks[0].speed
        values = [*self.logged, f'{brief(speed * self.images)} img/s'] if speed else self.logged
        parts = [where] if where else place(runner, done=done, stages=self.stages)
        self.bar.update(self.task, completed=done, where=self.gap.join(parts), values=self.gap.join(values))
        if time.monotonic() - self.drawn >= REFRESH or done >= runner.max_iters:
            try:
                self.bar.refresh()
            except OSError:  # the terminal is gone, for example with its window: the run goes on without it
                self._stop()
            self.drawn = time.monotonic()

    def _values(self, runner: Runner) -> list[str]:
        """Loss and rate as the log has them."""
        scalars, window = runner.message_hub.log_scalars, runner.log_processor.window_size
        loss, rate = scalars.get('train/loss'), scalars.get('train/lr')
        shown = [] if loss is None else [f'loss {loss.mean(window):.4g}']
        return shown if rate is None else [*shown, f'lr {rate.current():.1e}']

    def _start(self, runner: Runner) -> None:
        """Show the bar, and let the log write above it: its handler holds the stream that rich has replaced."""
        assert self.bar is not None
        streams = {name: getattr(sys, name) for name in ('stdout', 'stderr')}
        self.bar.start()
        for handler in runner.logger.handlers:
            for name, stream in streams.items():
                if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                    self.redirected.append((handler, stream))
                    handler.setStream(getattr(sys, name))

    def _stop(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()
        for handler, stream in self.redirected:
            handler.setStream(stream)
        self.bar, self.redirected = None, []


def someone_looks(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Whether a bar can be drawn there: a terminal that moves its cursor, and not one that CI only pretends to have.

    rich's own test would be misled by ``FORCE_COLOR``.
    """
    automatic = environment.get('CI', '').lower() not in ('', '0', 'false')
    return (
        stream is not None and stream.isatty() and not automatic and environment.get('TERM') not in ('dumb', 'unknown')
    )


def place(runner: Runner, *, done: int, stages: int) -> list[str]:
    """Stage, epoch and batch, or stage and iteration."""
    stage = [f'stage {runner.message_hub.get_info("mkd_stage", 1)}/{stages}'] if stages > 1 else []
    if not hasattr(runner.train_loop, 'run_epoch'):
        return [*stage, f'iteration {done}/{runner.max_iters}']
    length = len(runner.train_dataloader)
    epoch = min(runner.epoch, runner.max_epochs - 1)
    return [*stage, f'epoch {epoch + 1}/{runner.max_epochs}', f'{done - epoch * length}/{length}']


def brief(number: float) -> str:
    """Three digits, or all before the point."""
    return f'{number:.0f}' if number >= 100 else f'{number:.3g}'
