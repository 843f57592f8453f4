"""Draws the curves of a run when it ends, or is ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.metrics import METRICS, read_metrics
from mkd_plugin.engine.run_end import is_training, when_run_ends
from mkd_plugin.registry import HOOKS

__all__ = ['CURVES', 'CurvesHook']

CURVES = 'curves.png'


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws ``curves.png`` from ``metrics.jsonl`` (so it needs ``MetricsHook``): at the end, and on a signal, Ctrl-C or
    an exception. It covers the whole run, also what came before it was resumed.

    A picture that cannot be drawn is a warning; the run ends as it would have without it, with the same exit code.
    """

    def before_run(self, runner: Runner) -> None:
        """Be called when the run ends."""
        if is_training(runner) and is_main_process():
            when_run_ends(runner, lambda error: self._draw(runner, error))

    def _draw(self, runner: Runner, error: BaseException | None) -> None:
        metrics, out = Path(runner.work_dir, METRICS), Path(runner.work_dir, CURVES)
        try:
            rows = read_metrics(metrics) if metrics.is_file() else []
            if not rows:
                return
            with undisturbed():
                from mkd_plugin.curves import draw_curves  # matplotlib is of no use before

                drawn = draw_curves(rows, out, title=title_of(runner, error, done=rows[-1]['iter']))
        except Exception as problem:  # whatever it is, a picture must not hide why the run ended, or its exit code
            runner.logger.warning(f'{out} could not be drawn: {type(problem).__name__}: {problem}')
        else:
            if drawn:
                runner.logger.info(f'Curves: {out}')


def title_of(runner: Runner, error: BaseException | None, *, done: int) -> str:
    """Which run it is, and how it ended."""
    name = Path(runner.work_dir).resolve().name
    if error is None:
        return f'{name}: complete after {done} iterations'
    how = {SystemExit: 'preempted', KeyboardInterrupt: 'interrupted'}.get(type(error), type(error).__name__)
    return f'{name}: {how} after {done} of {runner.max_iters} iterations'


@contextmanager
def undisturbed() -> Iterator[None]:
    """Take no notice of SIGTERM and SIGUSR1: torchrun sends one as soon as the first process of a run has left."""
    if threading.current_thread() is not threading.main_thread():  # python allows it nowhere else
        yield
        return
    names = [name for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name)]
    before = {name: signal.signal(signal.Signals[name], signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(signal.Signals[name], handler if handler is not None else signal.SIG_DFL)
