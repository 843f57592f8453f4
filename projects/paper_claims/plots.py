"""Figures of the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt

from projects.paper_claims.recipes import INITS

COLOURS = {'holds': 'tab:green', 'fails': 'tab:red', 'undecided': 'tab:gray'}


def plot_claims(report: dict[str, Any], measures: Mapping[str, str], folder: Path) -> list[str]:
    """Draw a figure for each claim: all comparisons with their intervals, one panel per measure. Return the file names."""
    names = []
    for claim in report['claims']:
        rows = claim['comparisons'][::-1]
        size = (11, 1.0 + 0.34 * len(rows))
        figure, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, layout='constrained')
        for axis, (measure, title) in zip(axes, measures.items(), strict=True):
            for height, row in enumerate(rows):
                found = row['measures'][measure]
                colour = COLOURS[found['verdict']]
                axis.plot([found['low'], found['high']], [height, height], color=colour, linewidth=2)
                axis.plot(found['seeds'], [height] * len(found['seeds']), '|', color='black', markersize=5)
                axis.plot(found['mean'], height, 'o', color=colour)
            for bound in sorted({0.0, *(sign * row['margin'] for row in rows if row['margin'] for sign in (-1, 1))}):
                axis.axvline(bound, color='black', linewidth=0.6, linestyle='-' if bound == 0 else ':')
            axis.set_title(title, fontsize='x-small')
            axis.tick_params(labelsize='x-small')
        axes[0].set_yticks(range(len(rows)), [row['text'] for row in rows])
        figure.supxlabel('points; line: 95 % interval, ticks: seeds', fontsize='x-small')
        names.append(f'claim_{claim["number"]}.png')
        figure.savefig(folder / names[-1], dpi=110)
        plt.close(figure)
    return names


def plot_stages(report: dict[str, Any], measures: Mapping[str, str], out: Path, unit: str = '') -> bool:
    """Draw measures over dBOT's stages, a line for each teacher 0; return False if they were not measured."""
    if not measures or not all(f'{init}-{stage}' in report['scores']['probe'] for init in INITS for stage in range(3)):
        return False
    width = min(11, 3.7 * len(measures))
    figure, axes = plt.subplots(1, len(measures), figsize=(width, 3.2), layout='constrained')
    for axis, (measure, title) in zip(axes, measures.items(), strict=True):
        for init in INITS:
            stages = [report['scores'][measure][f'{init}-{stage}'] for stage in range(3)]
            seeds = [[fmean(draws) for draws in stage] for stage in stages]
            (line,) = axis.plot([fmean(stage) for stage in seeds], 'o-', label=init)
            axis.plot(seeds, color=line.get_color(), linewidth=0.5, alpha=0.6)
        axis.set_xticks(range(3), ['teacher 0', 'student 1', 'student 2'], fontsize='small')
        axis.set_title(title, fontsize='small')
        axis.set_ylabel(unit, fontsize='x-small')
    axes[0].legend(fontsize='x-small', title='teacher 0', title_fontsize='x-small')
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return True
