"""The curves of a run: losses, rate, validation, and what shows a collapse."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.metrics import METRICS, read_metrics
from mkd_plugin.engine.preemption import is_training, when_run_ends
from mkd_plugin.registry import HOOKS

Row = dict[str, Any]
MANY = 200  # points from which on a curve is smoothed

# (title, mode, whether a number belongs there); numbers that fit nowhere are not drawn.
PANELS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ('loss', 'train', lambda name: 'loss' in name),
    ('learning rate', 'train', lambda name: name.split('.')[-1] in ('lr', 'base_lr')),
    ('validation', 'val', lambda name: name not in ('mode', 'iter', 'epoch')),
    ('standard deviation over tokens', 'train', lambda name: name.endswith('_std')),
    ('gradient norm', 'train', lambda name: name == 'grad_norm'),
)


def draw_curves(rows: Sequence[Row], out: Path, *, title: str) -> bool:
    """Draw the numbers of a run over its iterations; stages are marked, and not connected.

    Args:
        rows: From ``read_metrics``.
        out: PNG file, replaced as a whole.
        title: Stands above the panels.

    Returns:
        Whether there was anything to draw.
    """
    panels = [(name, mode, chosen) for name, mode, fits in PANELS if (chosen := names_of(rows, mode, fits))]
    if not panels:
        return False
    columns = len(panels) if len(panels) <= 3 else 2 + len(panels) % 2
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * lines + 0.5), layout='constrained')  # without pyplot: Agg, no state
    figure.suptitle(title, fontsize='medium')
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
    for axis, (name, mode, chosen) in zip(axes, panels, strict=False):
        draw_panel(axis, [row for row in rows if row['mode'] == mode], name, chosen)
        mark_stages(axis, stage_starts(rows))
        axis.tick_params(labelbottom=True)
        axis.set_xlabel('iteration')
    for axis in axes[len(panels) :]:
        axis.remove()
    half = out.with_name(out.name + '.tmp')
    figure.savefig(half, dpi=120, format='png')
    os.replace(half, out)
    return True


def names_of(rows: Sequence[Row], mode: str, fits: Callable[[str], bool]) -> list[str]:
    """The numbers of a panel, in the order of the log; a total that is the only loss over again is left out."""
    names = list(dict.fromkeys(name for row in rows if row['mode'] == mode for name in row if fits(name)))
    names = [name for name in names if any(row.get(name) is not None for row in rows)]
    repeated = {'loss': [name for name in names if name != 'loss'], 'base_lr': ['lr'] if 'lr' in names else []}
    for name, others in repeated.items():
        if name in names and len(others) == 1 and all(row.get(name) == row.get(others[0]) for row in rows):
            names.remove(name)
    return names


def draw_panel(axis: Axes, rows: Sequence[Row], title: str, names: Sequence[str]) -> None:
    """One panel."""
    values = {name: [number(row.get(name)) for row in rows] for name in names}
    for name in names:
        line: Any = None
        for _, part in groupby(zip(rows, values[name], strict=True), key=lambda pair: pair[0].get('stage')):
            points = list(part)
            steps = np.array([row['iter'] for row, _ in points])
            again: dict[str, Any] = (
                dict(label=name, color=None) if line is None else dict(label=None, color=line.get_color())
            )
            line = draw_line(axis, steps, np.array([value for _, value in points]), **again)
    shown = np.array([value for column in values.values() for value in column])
    shown = shown[np.isfinite(shown)]
    axis.set_title(title, fontsize='small')
    axis.xaxis.set_major_formatter(EngFormatter(sep=''))
    axis.grid(alpha=0.3)
    if title in ('loss', 'gradient norm') and shown.size and 0 < shown.min() < shown.max() / 20:
        axis.set_yscale('log')
    elif title != 'validation' and shown.size and shown.min() >= 0:
        axis.set_ylim(bottom=0)
    axis.legend(fontsize='small')


def draw_line(axis: Axes, steps: Any, values: Any, *, label: str | None, color: Any) -> Any:
    """A curve, with dots where there are few points; of many a moving average before the faint points themselves."""
    if len(values) < MANY:
        return axis.plot(steps, values, '.-' if len(values) < 30 else '-', label=label, color=color, lw=1.2)[0]
    (raw,) = axis.plot(steps, values, color=color, alpha=0.3, lw=0.8)
    width = len(values) // 50
    known = np.isfinite(values)
    window = np.ones(width)
    counts = np.convolve(known, window, 'same')
    sums = np.convolve(np.where(known, values, 0.0), window, 'same')
    average = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return axis.plot(steps, average, label=label, color=raw.get_color(), lw=1.4)[0]


def stage_starts(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(stage, iterations before it), if there is more than one stage."""
    starts: dict[int, int] = {}
    before = 0
    for row in rows:
        if 'stage' in row:
            starts.setdefault(row['stage'], before)
            before = row['iter']
    return list(starts.items()) if len(starts) > 1 else []


def mark_stages(axis: Axes, starts: Sequence[tuple[int, int]]) -> None:
    """A dashed line where a stage begins, with its number."""
    for stage, start in starts:
        axis.axvline(start, color='grey', ls='--', lw=0.8)
        text = f' stage {stage}'
        axis.text(start, 0.98, text, transform=axis.get_xaxis_transform(), va='top', fontsize='x-small', color='grey')


def number(value: Any) -> float:
    """NaN, which is not drawn, where the file has none."""
    return float('nan') if value is None else float(value)


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
                from mkd_plugin.engine.curves import draw_curves  # matplotlib is of no use before

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
