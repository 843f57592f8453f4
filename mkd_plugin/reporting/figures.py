"""Figures of reports, drawn by matplotlib.

Each figure has one panel, so that a page can put figures side by side or, in a narrow window, below each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[Any]  # of any precision
SIZE = (4.6, 3.3)
LAYERS = 'viridis'  # colours of layers, from the first to the last
ATTENTION = (1.0, 0.55, 0.0)  # orange
MODELS = matplotlib.colormaps['tab10']


def panel(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Make an empty figure of one panel, without pyplot and its global state."""
    figure = Figure(figsize=SIZE, layout='constrained')
    axis = figure.subplots()
    axis.set_title(title, fontsize='medium')
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    return figure, axis


def compare_lines(
    title: str, labels: tuple[str, str], curves: Mapping[str, tuple[Floats, Floats]], style: str
) -> tuple[Figure, Axes]:
    """Draw one line per network through its (x, y)."""
    figure, axis = panel(title, *labels)
    for number, (name, (x, y)) in enumerate(curves.items()):
        axis.plot(x, y, style, color=MODELS(number % 10), label=name, lw=1.4)
    axis.legend(fontsize='small')
    return figure, axis


def compare_depths(
    title: str, ylabel: str, values: Mapping[str, Floats], *, from_input: bool = True, log: bool = False
) -> Figure:
    """Draw a number over depth, one line per network; ``from_input``: the first value is that of the input."""
    first = {name: 0 if from_input else 1 / len(y) for name, y in values.items()}
    curves = {name: (np.linspace(first[name], 1, len(y)), y) for name, y in values.items()}
    figure, axis = compare_lines(title, ('depth (0: input, 1: last block)', ylabel), curves, '.-')
    axis.set_xlim(-0.03, 1.03)
    if log:
        axis.set_yscale('log')
    return figure


def heads_figure(title: str, ylabel: str, values_NH: Floats, limits: tuple[float, float]) -> Figure:
    """Draw a number per block and head: one dot per head, and a line through their means."""
    figure, axis = panel(title, 'block', ylabel)
    blocks = np.arange(len(values_NH))
    axis.plot(np.repeat(blocks, values_NH.shape[1]), values_NH.flatten(), 'o', ms=3.5, alpha=0.5, color='tab:grey')
    axis.plot(blocks, values_NH.mean(axis=1), '-', color='tab:red', lw=1.6, label='mean over heads')
    axis.set_ylim(*limits)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize='small')
    return figure


def layers_figure(
    title: str, labels: tuple[str, str], curves: Sequence[tuple[Floats, Floats]], limits: tuple[float, float]
) -> Figure:
    """Draw one line through the (x, y) of each layer, coloured from the first to the last; ``limits`` are those of y."""
    figure, axis = panel(title, *labels)
    last = max(len(curves) - 1, 1)
    for number, (x, y) in enumerate(curves):
        axis.plot(x, y, '.-' if len(x) < 20 else '-', color=matplotlib.colormaps[LAYERS](number / last), lw=1.3)
    axis.set_ylim(*limits)
    bar = figure.colorbar(ScalarMappable(Normalize(0, last), LAYERS), ax=axis, label='layer (0: input)')
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def heat_figure(
    title: str, rows: tuple[str, Sequence[str]], columns: tuple[str, Sequence[str]], values: Floats
) -> Figure:
    """Draw a table of similarities, 0 … 1, with the first row at the bottom. A side is a network and its layers' names."""
    figure, axis = panel(title, columns[0], rows[0])
    axis.grid(visible=False)
    mesh = axis.pcolormesh(values, vmin=0, vmax=1, cmap='magma')
    axis.set_aspect('equal')
    for names, set_ticks in ((rows[1], axis.set_yticks), (columns[1], axis.set_xticks)):
        step = -(-len(names) // 7)
        set_ticks([i + 0.5 for i in range(0, len(names), step)], labels=list(names)[::step])
    figure.colorbar(mesh, ax=axis, label='CKA')
    return figure


def maps_figure(title: str, pictures: Floats, found: Mapping[str, Any]) -> Figure:
    """Draw attention, the result of ``measure_maps``, over the images (images, H, W, 3), 0 … 1."""
    layers, queries = found['layers'], found['queries']
    lines = [(image, query) for image in range(len(pictures)) for query in range(len(queries))]
    figure = Figure(figsize=(1.45 * (1 + len(layers)), 1.45 * len(lines) + 0.55), layout='constrained')
    figure.suptitle(title, fontsize='medium')
    axes = figure.subplots(len(lines), 1 + len(layers), squeeze=False)
    height, width = pictures.shape[1:3]
    for line, (image, query) in zip(axes, lines, strict=True):
        for axis, layer in zip(line, [None, *layers], strict=True):
            axis.set(xticks=[], yticks=[])
            if layer is None:
                axis.imshow(pictures[image], extent=(0, width, height, 0))
                grid = np.shape(next(iter(layers.values()))[image][query])
            else:
                overlay(axis, pictures[image], np.array(layers[layer][image][query]))
            side_x, side_y = width / grid[1], height / grid[0]
            corner = (queries[query][1] * side_x, queries[query][0] * side_y)
            for colour, line_width in (('black', 2.4), ('white', 1.2)):  # visible on dark and on light images
                axis.add_patch(Rectangle(corner, side_x, side_y, fill=False, edgecolor=colour, lw=line_width))
    for axis, name in zip(axes[0], ['query', *layers], strict=True):
        axis.set_title(name.replace(':', ' '), fontsize='small')
    return figure


def overlay(axis: Axes, picture: Floats, weights: Floats) -> None:
    """Draw attention over the image in dim grey: the larger the weight, the more orange."""
    height, width = picture.shape[:2]
    extent = (0, width, height, 0)
    axis.imshow(0.45 * picture.mean(axis=2), cmap='gray', vmin=0, vmax=1, extent=extent)
    colour = np.broadcast_to(ATTENTION, (*weights.shape, 3))
    opacity = 0.9 * weights[..., None] / weights.max()
    axis.imshow(np.concatenate([colour, opacity], axis=2), extent=extent, interpolation='nearest')


def density_figure(curves: Mapping[str, tuple[Floats, Floats]]) -> Figure:
    """Draw spectral densities of Hessians, one line per network."""
    labels = ('eigenvalue (loss per squared weight)', 'density')
    figure, axis = compare_lines('spectral density', labels, curves, '-')
    highest = max(density.max() for _, density in curves.values())
    axis.set_yscale('log')
    axis.set_ylim(highest * 1e-7, highest * 3)
    return figure


def surface_figure(title: str, steps: Floats, losses: Floats, limits: tuple[float, float]) -> Figure:
    """Draw a loss landscape as a surface, cut at the upper limit; there is a hole where the loss overflows."""
    figure = Figure(figsize=(4.6, 4.0))
    axis = figure.add_subplot(projection='3d')
    axis.set_title(title, fontsize='medium')
    second, first = np.meshgrid(steps, steps)
    heights = np.clip(losses, *limits)
    axis.plot_surface(first, second, heights, cmap='viridis', vmin=limits[0], vmax=limits[1], lw=0.2, edgecolor='white')
    ends = (-float(steps[-1]), 0, float(steps[-1]))
    axis.set(xlabel='direction 1', ylabel='direction 2', zlabel='loss', xticks=ends, yticks=ends)
    axis.set_zlim(*limits)
    axis.set_box_aspect((1, 1, 0.8), zoom=0.9)
    figure.subplots_adjust(left=0, right=0.93, bottom=0.04, top=0.95)
    return figure


def learning_curves_figure(
    name: str, ylabel: str, curves: Mapping[str, Sequence[Sequence[Sequence[float]]]]
) -> tuple[Figure, dict[str, float]]:
    """Draw a number over the iterations: one thin line per seed, and a thick one for their mean.

    ``curves`` has the points (iteration, value) of every seed of every start. The last value of every mean is also returned.
    """
    figure, axis = panel(name, 'iteration', ylabel)
    last: dict[str, float] = {}
    for number, (start, seeds) in enumerate(curves.items()):
        for points in seeds:
            axis.plot(*zip(*points, strict=True), color=MODELS(number % 10), lw=0.7, alpha=0.5, marker='.', ms=2)
        mean = mean_curve(seeds)
        axis.plot(*zip(*mean, strict=True), color=MODELS(number % 10), lw=1.8, label=start, marker='.', ms=4)
        last[start] = mean[-1][1]
    values = [point[1] for seeds in curves.values() for points in seeds for point in points]
    if 'loss' in name and 0 < min(values) < max(values) / 20:
        axis.set_yscale('log')
    axis.legend(fontsize='small')
    return figure, last


def sweep_figure(report: Mapping[str, Any]) -> Figure:
    """Draw the scores of a sweep over its values: one line per start, with the standard deviation over seeds as a bar."""
    xlabel, ylabel = report['axes']
    figure, axis = panel('', xlabel, ylabel)
    for number, (start, scores) in enumerate(report['scores'].items()):
        points = sorted((float(value), of['mean'], of['std'] or np.nan) for value, of in scores.items())
        if points:
            lines = np.array(points).T  # x, y, spread
            axis.errorbar(*lines, marker='.', capsize=3, lw=1.4, color=MODELS(number % 10), label=start)
    if 'rate' in xlabel:
        axis.set_xscale('log')
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize='small')
    return figure


def mean_curve(seeds: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    """Mean over the seeds at the iterations that all of them have, or the first seed if there are none."""
    found = [{point[0]: point[1] for point in points} for points in seeds]
    shared = [iteration for iteration in found[0] if all(iteration in points for points in found)]
    if not shared:
        return [(point[0], point[1]) for point in seeds[0]]
    return [(iteration, fmean(points[iteration] for points in found)) for iteration in shared]


def common_limits(arrays: Sequence[Floats]) -> tuple[float, float]:
    """A range that contains all values, with a margin."""
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    margin = 0.05 * ((high - low) or 1.0)
    return low - margin, high + margin
