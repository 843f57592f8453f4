"""The tables and the picture of docs/small_data.md."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mkd_plugin.utils.files import write_whole
from projects.small_data.cells import DECIDING, IMAGES, LONG, LONGER, NAMES, PERCENT, SCORES, SHORT, TESTED, Cell


@dataclass(frozen=True)
class Difference:
    """A difference of two cells in points, and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        verdict = '**better**' if self.mean > 2 * self.error else 'worse' if self.mean < -2 * self.error else 'same'
        return f'{self.mean:+.1f} ± {self.error:.1f} {verdict}'


Found = dict[Cell, dict[str, list[float]]]


def difference(found: Found, a: Cell, b: Cell, score: str = DECIDING) -> Difference | None:
    """Compare two cells on the seeds that both have; None if there is no such seed.

    The error has three parts: of the draws of labels (which are paired), of the test images (as if not paired, which is too
    large rather than too small) and, with several seeds, of the pre-training.
    """
    pairs = [(found.get(replace(a, seed=seed)), found.get(replace(b, seed=seed))) for seed in (0, 1)]
    both = [(np.array(one[score]), np.array(other[score])) for one, other in pairs if one and other]
    if not both:
        return None
    by_draw_SK = np.stack([one - other for one, other in both])
    shares = np.mean([[one.mean(), other.mean()] for one, other in both], axis=0) / 100
    squares = [*(shares * (1 - shares) / TESTED[a.data] * 1e4)]
    for values in (by_draw_SK.mean(axis=0), by_draw_SK.mean(axis=1)):
        if len(values) > 1:
            squares.append(values.var(ddof=1) / len(values))
    return Difference(float(by_draw_SK.mean()), math.sqrt(sum(squares)))


def questions() -> dict[str, tuple[Cell, Cell]]:
    """Return the comparisons that answer the page's questions: title → two cells, whose data and images are replaced."""
    mae, dbot, random = (Cell('', 1, method, LONG if method != 'random' else 0) for method in ('mae', 'dbot', 'random'))
    return {
        'MAE − random network': (mae, random),
        'dBOT − random network': (dbot, random),
        f'MAE, {LONG:,} − {SHORT} updates': (mae, replace(mae, steps=SHORT)),
        f'dBOT, {LONG:,} − {SHORT} updates': (dbot, replace(dbot, steps=SHORT)),
        f'MAE, {LONGER:,} − {LONG:,} updates': (replace(mae, steps=LONGER), mae),
        'dBOT − MAE': (dbot, mae),
        'DMAE from this MAE − MAE': (replace(mae, method='dmae'), mae),
        'MAE, big − small student': (replace(mae, student='big'), mae),
    }


def verdict_table(found: Found, data: str) -> str:
    """Return the comparisons of a data set, one column per share of its images."""
    lines = [['difference in points', *(f'{IMAGES[data] * percent // 100:,} images' for percent in PERCENT)]]
    lines.append(['---'] * len(lines[0]))
    for title, pair in questions().items():
        row = []
        for percent in PERCENT:
            a, b = (replace(cell, data=data, percent=percent if cell.method != 'random' else 0) for cell in pair)
            row.append(difference(found, a, b))
        if any(row):
            lines.append([title, *('' if one is None else str(one) for one in row)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def score_table(found: Found, data: str) -> str:
    """Return all scores of a data set, means over draws and seeds."""
    lines = [['images', 'method', 'updates', 'student', 'seeds', *SCORES.values()]]
    lines.append(['---'] * len(lines[0]))
    for cell in sorted({replace(cell, seed=0) for cell in found if cell.data == data}, key=table_order):
        seeds = [found[other] for seed in (0, 1) if (other := replace(cell, seed=seed)) in found]
        scores = (f'{statistics.fmean(value for one in seeds for value in one[name]):.1f}' for name in SCORES)
        images = f'{IMAGES[data] * cell.percent // 100:,}'
        lines.append([images, cell.method, f'{cell.steps:,}', cell.student, str(len(seeds)), *scores])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def table_order(cell: Cell) -> tuple[Any, ...]:
    """Order rows by images, student, method and length."""
    return cell.percent, cell.student == 'big', cell.method, cell.steps


def draw_scores(found: Found, path: Path) -> None:
    """Draw the deciding score over the number of images."""
    figure = Figure(figsize=(9, 4), layout='constrained')
    for axes, (data, name) in zip(figure.subplots(1, 2), NAMES.items(), strict=True):
        levels = [found[cell] for seed in (0, 1) if (cell := Cell(data, 0, 'random', 0, seed=seed)) in found]
        if levels:
            level = statistics.fmean(value for one in levels for value in one[DECIDING])
            axes.axhline(level, color='grey', linestyle=':', label='random network')
        for color, method in enumerate(('mae', 'dbot', 'dmae')):
            for steps, style in ((SHORT, '--'), (LONG, '-')):
                row = [(share, found.get(Cell(data, share, method, steps))) for share in PERCENT]
                points = [(IMAGES[data] * share / 100, scores[DECIDING]) for share, scores in row if scores]
                if points:
                    images, draws = zip(*points, strict=True)
                    means, spread = np.mean(draws, axis=1), np.std(draws, axis=1, ddof=1)
                    label = f'{method}, {steps:,} updates'
                    axes.errorbar(images, means, spread, color=f'C{color}', linestyle=style, marker='o', label=label)
        ticks = [IMAGES[data] * share // 100 for share in PERCENT]
        axes.set(xscale='log', xlabel='images of the pre-training', ylabel='top-1, per cent', title=name)
        axes.set(xlim=(ticks[0] / 1.5, ticks[-1] * 1.5))
        axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks], minor=False)
        axes.minorticks_off()
    figure.legend(
        *figure.axes[-1].get_legend_handles_labels(),
        loc='outside lower center',
        ncols=3,
        handlelength=3.5,
        fontsize='small',
    )
    figure.savefig(path, dpi=110)


def write_page(report: dict[str, Any], page: Path) -> None:
    """Put the tables between the marks of the page, and draw its picture."""
    found = {Cell(**entry['cell']): entry['scores'] for entry in report['cells']}
    blocks = {f'verdicts {data}': verdict_table(found, data) for data in NAMES}
    blocks |= {f'scores {data}': score_table(found, data) for data in NAMES}
    blocks['left out'] = (
        f'The time ended before {len(report["left_out"])} runs, which [report.json](small_data/report.json) lists.'
    )
    text = page.read_text()
    for mark, block in blocks.items():
        head, rest = text.split(f'<!-- {mark} -->\n', 1)
        text = f'{head}<!-- {mark} -->\n\n{block}\n\n<!-- end -->{rest.split("<!-- end -->", 1)[1]}'
    write_whole(page, text)
    draw_scores(found, page.with_suffix('') / 'scores.png')
