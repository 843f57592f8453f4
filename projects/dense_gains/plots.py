"""Figures of the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from projects.dense_gains.data import MEASURES, NAMES, PALETTE, read_scenes
from projects.dense_gains.verdicts import TIMES

SHOWN = 6  # scenes of each split in the figure of scenes


def plot_all(report: Mapping[str, Any], folder: Path) -> None:
    """Draw the figures that follow from the report."""
    plot_gains(report, folder / 'gains.png')
    plot_curves(report, folder / 'curves.png')
    plot_blocks(report, folder / 'blocks.png')
    plot_fit(report, folder / 'fit.png')


def plot_gains(report: Mapping[str, Any], out: Path) -> None:
    """Draw each start's difference to scratch: seeds, mean, and twice the spread to both sides."""
    figure, axes = plt.subplots(1, len(NAMES), figsize=(10, 2.8), sharey=True, layout='constrained')
    for axis, (measure, name) in zip(axes, NAMES.items(), strict=True):
        rows = report['verdict']['compared'][measure]
        for height, found in enumerate(rows.values()):
            axis.errorbar(found['mean'], height, xerr=TIMES * found['spread'], fmt='o', color='tab:blue', capsize=4)
            axis.plot(found['seeds'], [height] * len(found['seeds']), '|', color='black')
        axis.set_yticks(range(len(rows)), list(rows))
        axis.axvline(0, color='black', linewidth=0.7)
        axis.set_title(name, fontsize='small')
    axes[0].invert_yaxis()
    figure.supxlabel('points above scratch; line: twice the spread, ticks: seeds', fontsize='x-small')
    save(figure, out)


def plot_curves(report: Mapping[str, Any], out: Path) -> None:
    """Draw training loss and validation score over training, a line for each start, mean of the seeds."""
    panels = [(task, measure) for task, measures in MEASURES.items() for measure in measures]
    figure, axes = plt.subplots(2, len(panels), figsize=(11, 5), layout='constrained', squeeze=False)
    for column, (task, measure) in enumerate(panels):
        for start, curves in report['curves'][task].items():
            scores = np.mean([curve[measure] for curve in curves], axis=0)
            known = [found for found in report['losses'][task][start] if found]  # none of a run that diverged
            losses = np.mean(known, axis=0) if known else np.empty(0)
            for axis, values in zip(axes[:, column], (scores, losses), strict=True):
                axis.plot(np.arange(1, len(values) + 1) / len(values), values, '.-', label=start)
        axes[0, column].set_title(f'{task}: {NAMES[measure]} on val', fontsize='small')
        axes[1, column].set_title(f'{task}: training loss', fontsize='small')
        axes[1, column].set_visible(measure == next(iter(MEASURES[task])))  # one loss for both measures of detection
    axes[0, 0].legend(fontsize='x-small')
    figure.supxlabel('fraction of the training; starts differ in length and rate', fontsize='x-small')
    save(figure, out)


def plot_blocks(report: Mapping[str, Any], out: Path) -> None:
    """Draw the linear segmentor's mIoU over the blocks, on training and test scenes."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained', sharey=True)
    for axis, split in zip(axes, ('train', 'test'), strict=True):
        for start, seeds in report['frozen'].items():
            blocks = np.array([seed[split] for seed in seeds])
            places = np.arange(1, blocks.shape[1] + 1)
            (line,) = axis.plot(places, blocks.mean(0), 'o-', label=start)
            axis.fill_between(places, blocks.min(0), blocks.max(0), color=line.get_color(), alpha=0.15)
        axis.set_title(f'linear segmentor, {split} scenes', fontsize='small')
        axis.set_xlabel('block', fontsize='x-small')
    axes[0].set_ylabel('mIoU of patches, per cent', fontsize='x-small')
    axes[0].legend(fontsize='x-small')
    save(figure, out)


def plot_fit(report: Mapping[str, Any], out: Path) -> None:
    """Draw test scores over training scores, a point for each start and seed."""
    figure, axes = plt.subplots(1, len(NAMES), figsize=(10, 3.2), layout='constrained')
    for axis, (measure, name) in zip(axes, NAMES.items(), strict=True):
        for start, test in report['scores']['test'][measure].items():
            axis.plot(report['scores']['train'][measure][start], test, 'o', label=start)
        label(axis, f'{name} on training scenes', f'{name} on test scenes')
    axes[0].legend(fontsize='x-small')
    save(figure, out)


def plot_scenes(root: Path, out: Path) -> None:
    """Draw the first scenes of the splits 'train' and 'test', and their label maps below."""
    rows = []
    for split in ('train', 'test'):
        images, maps = read_scenes(root, split, min(SHOWN, len(list((root / 'coco' / split).iterdir()))))
        colours = np.array([(0, 0, 0), *PALETTE[1:]], dtype=np.uint8)[maps]
        rows += [np.concatenate(list(part), axis=1) for part in (images, colours)]
    width = min(row.shape[1] for row in rows)
    plt.imsave(out, np.concatenate([row[:, :width] for row in rows]).repeat(2, 0).repeat(2, 1))


def label(axis: Axes, x: str, y: str) -> None:
    """Label both axes."""
    axis.set_xlabel(x, fontsize='x-small')
    axis.set_ylabel(y, fontsize='x-small')


def save(figure: Any, out: Path) -> None:
    """Write a figure and close it."""
    figure.savefig(out, dpi=110)
    plt.close(figure)
