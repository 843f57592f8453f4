"""Learning curves of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from mkd_plugin.analysis.report.figures import MODELS, panel
from mkd_plugin.reporting.html import Panel


def task_panels(report: Mapping[str, Any], task: str) -> Iterator[Panel]:
    """A figure for each metric of a task, and one for the training loss; none for what was measured at the end only."""
    jobs = [job for job in report['jobs'] if job['task'] == task]
    for curve in (*report['tasks'][task]['metrics'], 'loss'):
        if any(len(job['curves'][curve]) > 1 for job in jobs):
            yield curves_panel(curve, jobs, list(report['starts']))


def curves_panel(name: str, jobs: Sequence[Mapping[str, Any]], starts: Sequence[str]) -> Panel:
    """A number over the iterations: a thin line for each seed, a thick one for their mean."""
    figure, axis = panel('training loss' if name == 'loss' else name, 'iteration', 'per cent' if name != 'loss' else '')
    ends = []
    for number, start in enumerate(starts):
        seeds = [job['curves'][name] for job in jobs if job['start'] == start and job['curves'][name]]
        if not seeds:
            continue
        colour = MODELS(number % 10)
        for points in seeds:
            axis.plot(*zip(*points, strict=True), color=colour, lw=0.7, alpha=0.5, marker='.', ms=2)
        mean = mean_curve(seeds)
        axis.plot(*zip(*mean, strict=True), color=colour, lw=1.8, label=start, marker='.', ms=4)
        ends.append(f'{start} {mean[-1][1]:.3g}')
    values = [point[1] for job in jobs for point in job['curves'][name]]
    if name == 'loss' and 0 < min(values) < max(values) / 20:
        axis.set_yscale('log')
    axis.legend(fontsize='small')
    return Panel(figure, f'{name} over the iterations, mean over seeds at the end: {", ".join(ends)}.')


def mean_curve(seeds: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    """Mean over the seeds at the iterations that all of them have; the first seed where there are none."""
    found = [{point[0]: point[1] for point in points} for points in seeds]
    shared = [iteration for iteration in found[0] if all(iteration in points for points in found)]
    if not shared:
        return [(point[0], point[1]) for point in seeds[0]]
    return [(iteration, fmean(points[iteration] for points in found)) for iteration in shared]
