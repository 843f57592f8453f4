"""Write the page of an experiment from its report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from projects.paper_claims.bench import Bench
from projects.paper_claims.plots import plot_claims, plot_stages
from projects.paper_claims.recipes import INITS
from projects.paper_claims.settings import settings_of
from projects.paper_claims.verdicts import UNDECIDED, compare, quantile

TEXTS = Path(__file__).parent / 'texts'
RESULTS = '<!-- results -->\n'  # where the tables stand in a text


def write_page(bench: Bench, report: dict[str, Any], page: Path, *, command: str) -> None:
    """Write the page, and its figures into the folder of its name beside it."""
    folder = page.with_suffix('')
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plot_claims(report, bench.measures, folder)
    stages = plot_stages(report, bench.measures, folder / 'stages.png', 'top-1, per cent')
    looks = plot_stages(report, bench.watched, folder / 'attention.png')
    settings = settings_of(report['settings'])
    text = (TEXTS / f'{bench.name}.md').read_text().format(
        **report['settings'],
        **{f'{name}_{key}': value for name, one in report['settings']['finetunings'].items() for key, value in one.items()},
        total=settings.steps(),
        folder=folder.name,
        command=command,
        jobs=report['jobs'],
        minutes=report['worker_minutes'],
        freedom=settings.seeds - 1,
        resolved=bench.resolved,
        reach=quantile(settings.seeds) / settings.seeds**0.5,
        family=bench.family,
    )  # fmt: skip
    head, method = text.split(RESULTS)
    if not bench.is_planned(report):  # what to believe was written about the whole experiment
        method = re.sub('## What to believe\n.*?(?=## )', '', method, flags=re.DOTALL)
    if left_out := bench.left_out(report):
        head += f'\n**Planned but not run**: {", ".join(left_out)}.\n'
    parts = [head, summary(bench, report['claims'])]
    for claim, picture in zip(report['claims'], pictures, strict=True):
        parts.append(claim_section(bench, claim, f'{folder.name}/{picture}'))
        if claim['number'] == 1 and stages:
            parts.append(f'![Scores over the stages of dBOT; thin lines are single seeds]({folder.name}/stages.png)\n')
            parts.append(spreads(bench, report['scores']))
        if claim['number'] == 1 and looks:
            names = ' and '.join(bench.watched.values())
            parts.append(f'![{names} over the stages of dBOT, which no verdict uses]({folder.name}/attention.png)\n')
    parts.append(f'## Every network\n\n{networks(bench, report["scores"])}')
    if bench.taught:
        parts.append(attention(bench, report['scores']))
    page.write_text('\n'.join([*parts, method.lstrip()]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def summary(bench: Bench, claims: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of claims and verdicts by each measure."""
    others = [measure for measure in bench.measures if measure != bench.deciding]
    rows = [
        [str(claim['number']), claim['title'], f'**{claim["verdict"]}**', *(claim['verdicts'][name] for name in others)]
        for claim in claims
    ]
    return table(['', 'claim', 'verdict', *(f'by {bench.measures[name]}' for name in others)], rows)


def claim_section(bench: Bench, claim: Mapping[str, Any], picture: str) -> str:
    """Return the section of a claim with all its comparisons."""
    rows = []
    for row in claim['comparisons']:
        text = f'**{row["text"]}**' if row['decides'] else row['text']
        rows.append(
            [text, *(cell(row['measures'][measure], row['margin'], bench.resolved) for measure in bench.measures)]
        )
    body = table(['difference in points (95 % interval)', *bench.measures.values()], rows)
    return (
        f'## {claim["number"]}. {claim["title"]}: {claim["verdict"]}\n\n'
        f'{claim["source"]}. {claim["note"]}\n\n{body}\n'
        f'![Comparisons of claim {claim["number"]} with 95 % intervals]({picture})\n'
    )


def cell(found: Mapping[str, Any], margin: float | None, resolved: float) -> str:
    """Format mean, interval and verdict; the seeds that an undecided one needs; † for what other test images may undo."""
    text = f'{found["mean"]:+.1f} ({found["low"]:+.1f} … {found["high"]:+.1f}) {found["verdict"]}'
    if 'needed' in found:
        return f'{text}; {found["needed"] or "over 1,000"} seeds'
    distance = abs(found['mean']) if margin is None else abs(margin - abs(found['mean']))
    return text + ('†' if found['verdict'] != UNDECIDED and distance < resolved else '')


def spreads(bench: Bench, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the spread over teachers 0 at each stage."""
    rows = []
    for stage, name in enumerate(('teachers 0', 'students 1', 'students 2')):
        cells = []
        for measure in bench.measures:
            by_init = [[fmean(draws) for draws in scores[measure][f'{init}-{stage}']] for init in INITS]
            cells.append(f'{fmean(stdev(values) for values in zip(*by_init, strict=True)):.2f}')
        rows.append([name, *cells])
    head = ['standard deviation over the four initial teachers, mean over the seeds', *bench.measures.values()]
    return table(head, rows)


def networks(bench: Bench, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of all networks and their scores."""
    columns = {**bench.measures, **bench.watched}
    rows = []
    for name in scores[bench.deciding]:
        cells = []
        for measure in columns:
            values, digits = [fmean(draws) for draws in scores[measure][name]], 1 if measure in bench.measures else 2
            cells.append(f'{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}')
        rows.append([f'`{name}`', *cells])
    note = 'Mean ± standard deviation over the seeds, of the means over draws. '
    names = (
        '`random-0` is the random teacher 0; `random-1` and `random-2` are students 1 and 2 that start from it. The networks '
        'of the other initial teachers are named in the same way.'
    )
    return table(['network', *columns.values()], rows) + f'\n{note}{names}\n'


def attention(bench: Bench, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of students beside their teachers, by the values that no verdict uses."""
    rows = []
    for pair in bench.taught:
        if all(name in scores[bench.deciding] for name in pair.networks):
            found = [compare(pair, scores[name]) for name in bench.watched]
            cells = [f'{one["mean"]:+.2f} ({one["low"]:+.2f} … {one["high"]:+.2f})' for one in found]
            rows.append([pair.text, *cells])
    head = ['student − teacher, last block (95 % interval, not corrected)', *bench.watched.values()]
    return f'## What distillation did to attention\n\n{table(head, rows)}'
