"""docs/small_scale.md from a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from reproduce.plots import plot_claims, plot_stages
from reproduce.recipes import INITS
from reproduce.report import MEASURES
from reproduce.settings import Settings
from reproduce.statistics import reach

__all__ = ['write_page']

HEAD = """# The papers' claims at small scale

<!-- Written by projects/paper_claims/reproduce_shapes.py from {folder}/report.json: change the tool, not this page. -->

Do the qualitative claims of the four papers show on 1,797 real handwritten digits? Each is measured over {seeds} pre-training
seeds and {draws} draws of labels for each, and judged by a rule, not by eye. All numbers are in
[report.json]({folder}/report.json). `{command}` does it all: {jobs} jobs, which took {minutes:.0f} minutes of
worker time for this page, on a machine that was busy with other work; `--claim N` does one claim; run again after an
interruption, it goes on.

**What this can and cannot show.** A ViT of four blocks × {width}, {steps:,} steps of {batch} images of 24 px, {labels} labels a
class, 357 scans to test on: a claim that holds here holds on these digits. One that is undecided or fails says nothing against
the paper, whose sizes are a thousand times these; it says that it does not show at this size.
"""

METHOD = """## How it is measured

- **Data.** scikit-learn's digits in the quickstart's split. Pre-training sees the 1,440 training scans without labels, but
  for the supervised teacher, which has the labels of all of them. The 357 test scans are in no training.
- **Runs.** mmengine's runner and the shipped digits configs with changed options
  ([recipes](../projects/paper_claims/reproduce/recipes.py)); the supervised teacher is mmpretrain's
  `ImageClassifier` and the contrastive one its `SimCLR`, both around mmpretrain's own ViT. All runs of a
  seed share that seed, so that runs of one model start from the same weights. `mae-0` is the MAE teacher of
  all methods, and MAE itself in claim 6.
- **Lengths** were chosen for the time there was. In a pilot with seed 0, dBOT's student from the random teacher was far above
  its teacher after 900 steps; a first try with 480 steps of 24 images was given up within seed 0: both students scored
  below their random teacher in the probe. Nothing was changed after these lengths had given their first score.
- **Scores**, top-1 on the test scans in per cent. *Fine-tuned*: {labels} labels a class, {finetune_steps} steps of
  {finetune_batch} images; networks that are compared get the same draws, and no two seeds share one. *Linear probe* and
  *k-NN* (20 neighbours): mean of the last block's patch tokens, frozen, all labels of the training split, no draw.
- **Interval.** Draws of one seed share a network, so they are averaged first. One value for each seed remains, and the
  interval is Student's over the seeds (95 %, {freedom} degrees of freedom, so ± {reach:.1f} standard deviations over the
  seeds): seeds and draws are both in its variance. Chance in the choice of the 357 test scans is not; all networks are tested
  on the same.
- **Verdict.** *holds*: the whole interval is above zero (for "within a point": inside ± 1); *fails*: it is wholly on the
  other side; otherwise *undecided*. A claim with several deciding comparisons (in bold) holds if all do, and fails if one
  does. Fine-tuned accuracy decides, because that is what the papers report; the other scores' verdicts stand beside it.
  Nothing is corrected for the number of comparisons: of twenty intervals one is expected to miss.
"""


def write_page(report: dict[str, Any], page: Path, folder: Path, *, command: str) -> None:
    """Write the page and its pictures, which go into ``folder`` (beside the page, or below it)."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plot_claims(report, folder)
    stages = plot_stages(report, folder / 'stages.png')
    at, settings = folder.name, report['settings']
    minutes = report['worker_minutes']
    steps = Settings(**settings).steps_per_epoch * settings['epochs']
    parts = [HEAD.format(**settings, steps=steps, folder=at, command=command, jobs=report['jobs'], minutes=minutes)]
    parts.append(summary(report['claims']))
    for claim, picture in zip(report['claims'], pictures, strict=True):
        parts.append(claim_section(claim, f'{at}/{picture}'))
        if claim['number'] == 1 and stages:
            parts.append(f'![Scores over the stages; thin lines are seeds]({at}/stages.png)\n')
            parts.append(spreads(report['scores']))
    parts.append(f'## Every network\n\n{networks(report["scores"])}')
    seeds = settings['seeds']
    parts.append(METHOD.format(**settings, freedom=seeds - 1, reach=reach(seeds)))
    page.write_text('\n'.join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def summary(claims: Sequence[Mapping[str, Any]]) -> str:
    """Claim → verdict, by each measure."""
    others = [measure for measure in MEASURES if measure != 'finetuned']
    rows = [
        [str(claim['number']), claim['title'], f'**{claim["verdict"]}**', *(claim['verdicts'][name] for name in others)]
        for claim in claims
    ]
    return table(['', 'claim', 'verdict', *(f'by {MEASURES[name]}' for name in others)], rows)


def claim_section(claim: Mapping[str, Any], picture: str) -> str:
    """A claim with all its comparisons."""
    rows = []
    for row in claim['comparisons']:
        text = f'**{row["text"]}**' if row['decides'] else row['text']
        rows.append([text, *(cell(row['measures'][measure]) for measure in MEASURES)])
    body = table(['points (95 % interval)', *MEASURES.values()], rows)
    return (
        f'## {claim["number"]}. {claim["title"]}: {claim["verdict"]}\n\n'
        f'{claim["source"]}. {claim["note"]}\n\n{body}\n![Claim {claim["number"]}]({picture})\n'
    )


def cell(found: Mapping[str, Any]) -> str:
    """Mean, interval and verdict."""
    return f'{found["mean"]:+.1f} ({found["low"]:+.1f} … {found["high"]:+.1f}) {found["verdict"]}'


def spreads(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The spread over teachers 0 at each stage: mean over the seeds."""
    rows = []
    for stage, name in enumerate(('teacher 0', 'student 1', 'student 2')):
        cells = []
        for measure in MEASURES:
            by_init = [[fmean(draws) for draws in scores[measure][f'{init}-{stage}']] for init in INITS]
            cells.append(f'{fmean(stdev(values) for values in zip(*by_init, strict=True)):.2f}')
        rows.append([name, *cells])
    return table(['standard deviation over the four, mean over the seeds', *MEASURES.values()], rows)


def networks(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Network → scores, mean over seeds ± standard deviation over seeds."""
    rows = []
    for name in scores['finetuned']:
        seeds = [[fmean(draws) for draws in scores[measure][name]] for measure in MEASURES]
        rows.append([f'`{name}`', *(f'{fmean(values):.1f} ± {stdev(values):.1f}' for values in seeds)])
    note = '± is the standard deviation over the seeds (of the means over draws). '
    names = (
        '`random-0` is the random teacher 0 and `random-1`, `random-2` the students of the stages that start from it, '
        'likewise with the other teachers.'
    )
    return table(['network', *MEASURES.values()], rows) + f'\n{note}{names}\n'
