"""Write the page of the experiment from its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from projects.dense_gains.data import MEASURES, NAMES
from projects.dense_gains.photographs import PHOTOGRAPHS
from projects.dense_gains.plots import plot_all
from projects.dense_gains.recipes import SCRATCH
from projects.dense_gains.settings import Settings, Tuning, settings_of
from projects.paper_claims.page import table

TEXT = Path(__file__).with_name('page.md')


def write_page(report: Mapping[str, Any], page: Path) -> None:
    """Write the page, and its figures into the folder of its name beside it."""
    settings = settings_of(report['settings'])
    plot_all(report, page.with_suffix(''))
    parts = dict(
        conclusion=conclusion(report),
        scores=scores(report),
        gains=gains(report),
        settings=chosen(report),
        grids='\n'.join(grid(report, task) for task in MEASURES),
        blocks=blocks(report),
        fit=fit(report),
        photographs=photographs(),
        minutes=minutes(report),
    )
    sizes = dict(
        **{f'{split}_scenes': count for split, count in settings.counts.items()},
        labelled=settings.labelled,
        steps=settings.steps,
        teacher_steps=settings.teacher_steps,
        batch=settings.batch,
        seeds=settings.seeds,
        side=settings.side,
        crop=settings.crop,
        width=settings.width,
        jobs=report['jobs'],
        hours=f'{report["worker_minutes"] / 60:.1f}',
        folder=page.stem,
        lengths=lengths(settings),
    )
    page.write_text(TEXT.read_text().format(**parts, **sizes))


def lengths(settings: Settings) -> str:
    """Describe the lengths of the fine-tunings."""
    found = [f'{task}: {steps["short"]} or {steps["long"]} steps' for task, steps in settings.lengths.items()]
    return f'{"; ".join(found)}; {settings.scenes} scenes each'


def conclusion(report: Mapping[str, Any]) -> str:
    """Say in a sentence for each measure what the best masked pre-training gains, and whether the goal is reached."""
    verdict = report['verdict']
    lines = []
    for task, measures in MEASURES.items():
        start = verdict['best'][task]
        for measure in measures:
            found = verdict['compared'][measure][start]
            lines.append(
                f'- {NAMES[measure]}: {start} against scratch {found["mean"]:+.2f} ± {found["spread"]:.2f} points: '
                f'**{found["verdict"]}**.'
            )
    reached = 'is reached' if verdict['reached'] else 'is not reached'
    goal = f'The goal, a gain of more than twice the spread in all three measures, {reached}.'
    return '\n'.join([goal, '', *lines])


def mean_and_spread(values: Sequence[float]) -> str:
    """Format the mean and the standard deviation over seeds."""
    return f'{fmean(values):.2f} ± {stdev(values):.2f}'


def scores(report: Mapping[str, Any]) -> str:
    """Return the table of test scores."""
    test = report['scores']['test']
    rows = [[start, *(mean_and_spread(test[name][start]) for name in NAMES)] for start in test['box']]
    return table(['score, mean ± standard deviation over the seeds', *NAMES.values()], rows)


def gains(report: Mapping[str, Any]) -> str:
    """Return the table of differences to scratch."""
    verdict = report['verdict']
    best = {measure: verdict['best'][task] for task, measures in MEASURES.items() for measure in measures}
    rows = []
    for start in verdict['compared']['box']:
        cells = []
        for measure in NAMES:
            found = verdict['compared'][measure][start]
            seeds = ', '.join(f'{value:+.1f}' for value in found['seeds'])
            text = (
                f'{found["mean"]:+.2f} ± {found["spread"]:.2f} ({seeds}; {found["low"]:+.1f} … {found["high"]:+.1f}): '
                f'{found["verdict"]}'
            )
            cells.append(f'**{text}**' if start == best[measure] else text)
        rows.append([start, *cells])
    head = 'difference to scratch, mean ± spread (seeds; 95 % interval)'
    return table([head, *NAMES.values()], rows)


def tuning_of(stored: Mapping[str, Any]) -> Tuning:
    """Read a setting from a report."""
    return Tuning(stored['lr'], stored['decay'], stored['length'])


def chosen(report: Mapping[str, Any]) -> str:
    """Return the table of chosen settings."""
    starts = next(iter(report['chosen'].values()))
    rows = [[start, *(str(tuning_of(report['chosen'][task][start])) for task in MEASURES)] for start in starts]
    return table(['start', *MEASURES], rows)


def grid(report: Mapping[str, Any], task: str) -> str:
    """Return the table of all settings that were tried for a task, the chosen one in bold."""
    columns: dict[str, None] = {}
    cells: dict[str, dict[str, str]] = {}
    for start, tried in report['grid'][task].items():
        for one in tried:
            name = str(tuning_of(one))
            columns[name] = None
            text = ' / '.join(f'{one[measure]:.1f}' for measure in MEASURES[task])
            best = tuning_of(report['chosen'][task][start]) == tuning_of(one)
            cells.setdefault(name, {})[start] = f'**{text}**' if best else text
    starts = list(report['grid'][task])
    rows = [[name, *(cells[name].get(start, '') for start in starts)] for name in columns]
    measures = ' / '.join(NAMES[measure] for measure in MEASURES[task])
    return table([f'{task}: {measures} on val', *starts], rows)


def blocks(report: Mapping[str, Any]) -> str:
    """Return the table of the linear segmentor after each block."""
    count = len(report['frozen'][SCRATCH][0]['test'])
    rows = [
        [start, *(mean_and_spread([seed['test'][block] for seed in seeds]) for block in range(count))]
        for start, seeds in report['frozen'].items()
    ]
    return table(['mIoU of patches, test scenes', *(f'block {block + 1}' for block in range(count))], rows)


def fit(report: Mapping[str, Any]) -> str:
    """Return the table of scores on training scenes, on test scenes, and their difference."""
    train, test = report['scores']['train'], report['scores']['test']
    rows = []
    for start in test['box']:
        pairs = [(fmean(train[name][start]), fmean(test[name][start])) for name in NAMES]
        rows.append([start, *(f'{one:.1f} − {two:.1f} = {one - two:.1f}' for one, two in pairs)])
    return table(['training − test', *NAMES.values()], rows)


def photographs() -> str:
    """Return the table of photographs."""
    return table(
        ['photograph', 'package', 'licence'], [[Path(one.file).stem, one.package, one.licence] for one in PHOTOGRAPHS]
    )


def minutes(report: Mapping[str, Any]) -> str:
    """Return the table of jobs and their durations."""
    rows = [[kind, str(count), f'{mean:.1f}'] for kind, (count, mean) in report['minutes'].items()]
    return table(['jobs', 'number', 'minutes each, mean'], rows)
