"""Figures of a report, by matplotlib: one panel each, so that they can lie side by side or, in a narrow window, below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
LAYERS = 'viridis'  # the colour of a layer, from the first to the last
ATTENTION = (1.0, 0.55, 0.0)  # orange
MODELS = matplotlib.colormaps['tab10']


def panel(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty figure of one panel; without pyplot, which keeps state."""
    figure = Figure(figsize=SIZE, layout='constrained')
    axis = figure.subplots()
    axis.set_title(title, fontsize='medium')
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    return figure, axis


def compare_depths(
    title: str, ylabel: str, curves: Mapping[str, tuple[Floats, Floats]], *, log: bool = False
) -> Figure:
    """A number over depth, a line a network.

    Args:
        title: Of the panel.
        ylabel: Of the number.
        curves: Network → (relative depth, values).
        log: Logarithmic values.
    """
    figure, axis = panel(title, 'depth (0: input, 1: last block)', ylabel)
    for number, (name, (depths, values)) in enumerate(curves.items()):
        axis.plot(depths, values, '.-', color=MODELS(number % 10), label=name, lw=1.4)
    axis.set_xlim(-0.03, 1.03)
    if log:
        axis.set_yscale('log')
    axis.legend(fontsize='small')
    return figure


def heads_figure(title: str, ylabel: str, values_NH: Floats, limits: tuple[float, float]) -> Figure:
    """A number per block and head: a dot a head, a line of their means."""
    figure, axis = panel(title, 'block', ylabel)
    blocks = np.arange(len(values_NH))
    axis.plot(np.repeat(blocks, values_NH.shape[1]), values_NH.flatten(), 'o', ms=3.5, alpha=0.5, color='tab:grey')
    axis.plot(blocks, values_NH.mean(axis=1), '-', color='tab:red', lw=1.6, label='mean over heads')
    axis.set_ylim(*limits)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize='small')
    return figure


def layers_figure(
    title: str,
    labels: tuple[str, str],
    curves: Sequence[tuple[Floats, Floats]],
    limits: tuple[float, float],
) -> Figure:
    """A line a layer, coloured from the first to the last.

    Args:
        title: Of the panel.
        labels: Of the two axes.
        curves: (x, y) of every layer.
        limits: Of y.
    """
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
    """A table of similarities, 0 … 1, first row at the bottom.

    Args:
        title: Of the panel.
        rows: Name of the network, names of its layers.
        columns: Likewise.
        values: (rows, columns).
    """
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
    """Attention of query patches over the image.

    Args:
        title: Of the figure.
        pictures: (images, H, W, 3), 0 … 1.
        found: What ``measure_maps`` gave.
    """
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
            mark_patch(axis, queries[query], (height / grid[0], width / grid[1]))
    for axis, name in zip(axes[0], ['query', *layers], strict=True):
        axis.set_title(name.replace(':', ' '), fontsize='small')
    return figure


def overlay(axis: Axes, picture: Floats, weights: Floats) -> None:
    """Attention over the image in dim grey: the nearer to the greatest weight, the more orange."""
    height, width = picture.shape[:2]
    extent = (0, width, height, 0)
    axis.imshow(0.45 * picture.mean(axis=2), cmap='gray', vmin=0, vmax=1, extent=extent)
    colour = np.broadcast_to(ATTENTION, (*weights.shape, 3))
    opacity = 0.9 * weights[..., None] / weights.max()
    axis.imshow(np.concatenate([colour, opacity], axis=2), extent=extent, interpolation='nearest')


def mark_patch(axis: Axes, place: Sequence[int], patch_hw: tuple[float, float]) -> None:
    """A square around a patch, white on dark and dark on white."""
    corner = (place[1] * patch_hw[1], place[0] * patch_hw[0])
    for colour, width in (('black', 2.4), ('white', 1.2)):
        axis.add_patch(Rectangle(corner, patch_hw[1], patch_hw[0], fill=False, edgecolor=colour, lw=width))


def density_figure(curves: Mapping[str, tuple[Floats, Floats]]) -> Figure:
    """Spectral densities of Hessians, a line a network."""
    figure, axis = panel('spectral density', 'eigenvalue', 'density')
    for number, (name, (at, density)) in enumerate(curves.items()):
        axis.plot(at, density, color=MODELS(number % 10), label=name, lw=1.3)
    highest = max(density.max() for _, density in curves.values())
    axis.set_yscale('log')
    axis.set_ylim(highest * 1e-7, highest * 3)
    axis.legend(fontsize='small')
    return figure


def surface_figure(title: str, steps: Floats, losses: Floats, limits: tuple[float, float]) -> Figure:
    """A loss landscape as a surface, cut at the upper limit; where the loss overflows there is none."""
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
