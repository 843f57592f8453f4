"""``curves.png``: losses, learning rate, validation, and the statistics that show a collapse, over a whole run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.guards import INTERRUPTED
from mkd_plugin.engine.metrics import METRICS, Row, read_metrics
from mkd_plugin.engine.run_utils import is_training, when_run_ends
from mkd_plugin.registry import HOOKS
from mkd_plugin.utils.files import atomic_write

CURVES = 'curves.png'
MANY = 200  # curves of more points are smoothed
# (title, mode, whether a metric of this name belongs here); other metrics are not drawn
PANELS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ('loss', 'train', lambda name: 'loss' in name),
    ('learning rate', 'train', lambda name: name.split('.')[-1] in ('lr', 'base_lr')),
    ('validation', 'val', lambda name: name not in ('mode', 'iter', 'epoch', 'run')),
    ('standard deviation over tokens', 'train', lambda name: name.endswith('_std')),
    ('gradient norm', 'train', lambda name: name == 'grad_norm'),
)


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws ``curves.png`` from ``metrics.jsonl`` when a run ends, also by a signal, Ctrl-C or an exception.

    It needs ``MetricsHook``. The figure covers the whole run, including the part before a resume. If drawing fails, the run
    logs a warning and ends with the same exit code.
    """

    def before_run(self, runner: Runner) -> None:
        """Register the drawing, to be done when the run ends."""
        if is_training(runner) and is_main_process():
            when_run_ends(runner, lambda error: self._draw(runner, error))

    def _draw(self, runner: Runner, error: BaseException | None) -> None:
        metrics, out = Path(runner.work_dir, METRICS), Path(runner.work_dir, CURVES)
        try:
            rows = read_metrics(metrics) if metrics.is_file() else []
            if not rows:
                return
            with signals_ignored():
                drawn = draw_curves(rows, out, title=title_of(runner, error, done=rows[-1]['iter']))
        except Exception as problem:  # a figure must not hide why the run ended, nor change its exit code
            runner.logger.warning(f'{out} could not be drawn: {type(problem).__name__}: {problem}')
        else:
            if drawn:
                runner.logger.info(f'Curves: {out}')


def title_of(runner: Runner, error: BaseException | None, *, done: int) -> str:
    """Name of the run, and how it ended."""
    name = Path(runner.work_dir).resolve().name
    if error is None:
        return f'{name}: complete after {done} iterations'
    how = {SystemExit: 'preempted', KeyboardInterrupt: 'interrupted'}.get(type(error), type(error).__name__)
    if isinstance(error, SystemExit) and error.code == INTERRUPTED:
        how = 'interrupted'
    return f'{name}: {how} after {done} of {runner.max_iters} iterations'


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore SIGTERM and SIGUSR1: torchrun sends one as soon as the first process of a run has exited."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def draw_curves(rows: Sequence[Row], out: Path, *, title: str) -> bool:
    """Draw the rows of ``read_metrics`` over the iterations to a PNG file; return whether there was anything to draw.

    Stages are marked, and their curves not connected.
    """
    from matplotlib.figure import Figure  # needed once, when a run ends

    panels = [(name, mode, chosen) for name, mode, fits in PANELS if (chosen := metric_names(rows, mode, fits))]
    if not panels:
        return False
    columns = len(panels) if len(panels) <= 3 else 2 + len(panels) % 2
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * lines + 0.5), layout='constrained')  # no pyplot: no global state
    figure.suptitle(title, fontsize='medium')
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
    for axis, (name, mode, chosen) in zip(axes, panels, strict=False):
        draw_panel(axis, [row for row in rows if row['mode'] == mode], name, chosen)
        for stage, start in stage_starts(rows):
            axis.axvline(start, color='grey', ls='--', lw=0.8)
            place = dict(transform=axis.get_xaxis_transform(), va='top')
            axis.text(start, 0.98, f' stage {stage}', fontsize='x-small', color='grey', **place)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel('iteration')
    for axis in axes[len(panels) :]:
        axis.remove()
    with atomic_write(out, 'wb') as file:
        figure.savefig(file, dpi=120, format='png')
    return True


def metric_names(rows: Sequence[Row], mode: str, fits: Callable[[str], bool]) -> list[str]:
    """Names of a panel's metrics in the log's order, without a total that only repeats a single loss."""
    names = list(dict.fromkeys(name for row in rows if row['mode'] == mode for name in row if fits(name)))
    names = [name for name in names if any(row.get(name) is not None for row in rows)]
    repeated = {'loss': [name for name in names if name != 'loss'], 'base_lr': ['lr'] if 'lr' in names else []}
    for name, others in repeated.items():
        if name in names and len(others) == 1 and all(row.get(name) == row.get(others[0]) for row in rows):
            names.remove(name)
    return names


def draw_panel(axis: Any, rows: Sequence[Row], title: str, names: Sequence[str]) -> None:
    """Draw one panel into matplotlib's axes."""
    from matplotlib.ticker import EngFormatter

    values = {name: np.array([row.get(name) for row in rows], dtype=float) for name in names}  # None becomes NaN
    for name in names:
        color: Any = None
        for _, part in groupby(range(len(rows)), key=lambda number: rows[number].get('stage')):
            numbers = list(part)
            steps = np.array([rows[number]['iter'] for number in numbers])
            label = name if color is None else None
            color = draw_line(axis, steps, values[name][numbers], label=label, color=color).get_color()
    shown = np.concatenate(list(values.values()))
    shown = shown[np.isfinite(shown)]
    axis.set_title(title, fontsize='small')
    axis.xaxis.set_major_formatter(EngFormatter(sep=''))
    axis.grid(alpha=0.3)
    if title in ('loss', 'gradient norm') and shown.size and 0 < shown.min() < shown.max() / 20:
        axis.set_yscale('log')
    elif title != 'validation' and shown.size and shown.min() >= 0:
        axis.set_ylim(bottom=0)
    axis.legend(fontsize='small')


def draw_line(axis: Any, steps: Any, values: Any, *, label: str | None, color: Any) -> Any:
    """Draw a curve, with dots if it has few points, as a moving average over faint points if it has many."""
    if len(values) < MANY:
        return axis.plot(steps, values, '.-' if len(values) < 30 else '-', label=label, color=color, lw=1.2)[0]
    (raw,) = axis.plot(steps, values, color=color, alpha=0.3, lw=0.8)
    window = np.ones(len(values) // 50)
    sums, counts = (np.convolve(part, window, 'same') for part in (np.nan_to_num(values), np.isfinite(values)))
    average = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return axis.plot(steps, average, label=label, color=raw.get_color(), lw=1.4)[0]


def stage_starts(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(stage, iterations before it) of each stage; empty for a run of one stage."""
    starts: dict[int, int] = {}
    before = 0
    for row in rows:
        if 'stage' in row:
            starts.setdefault(row['stage'], before)
            before = row['iter']
    return list(starts.items()) if len(starts) > 1 else []
