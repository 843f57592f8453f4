"""Write docs/small_scale.md from a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from projects.paper_claims.plots import plot_claims, plot_stages
from projects.paper_claims.recipes import INITS
from projects.paper_claims.settings import Settings
from projects.paper_claims.verdicts import MEASURES, quantile

HEAD = """# The papers' claims at small scale

<!-- Written by projects/paper_claims/run.py from {folder}/report.json. Change projects/paper_claims/page.py instead. -->

This experiment tests the qualitative claims of the four papers on 1,797 scans of handwritten digits. Each claim is
measured with {seeds} pre-training seeds and {draws} draws of labels per seed, and judged by a fixed rule. All numbers
are in [report.json]({folder}/report.json). To repeat the experiment, run `{command}`: {jobs} jobs, which took
{minutes:.0f} minutes of worker time on a machine that was busy with other work. `--claim N` runs one claim. To resume
after an interruption, run the same command again.

**What this can and cannot show.** The ViT has four blocks of width {width}; it is trained for {steps:,} steps of
{batch} images of 24 px, fine-tuned on {labels} labels per class and tested on 357 scans. A claim that holds here has
been shown for these digits only. A claim that fails or is undecided here is not refuted: the papers' models and data
are about a thousand times larger, and the effect may need that size.

**Terms.** *Teacher 0* is the network that the first training stage distils. *Student 1* is trained with teacher 0 as
its teacher, and *student 2* with student 1 as its teacher. Teacher 0 is one of four networks: a random one, or one
trained by MAE, with labels (*supervised*) or by contrastive learning (*contrastive*). A *draw* is a random choice of
the labelled training scans. A *point* is one per cent of top-1 accuracy.
"""

METHOD = """## How it is measured

- **Data.** scikit-learn's digits, split as in the quickstart. Pre-training uses the 1,440 training scans without
  labels; only the supervised teacher is trained on all their labels. No training uses the 357 test scans.
- **Runs.** The shipped digits configs with changed options ([recipes](../projects/paper_claims/recipes.py)), trained
  by mmengine's runner. The supervised teacher is mmpretrain's `ImageClassifier` and the contrastive one its `SimCLR`,
  both with mmpretrain's own ViT. All runs of a seed use that seed, so that runs of the same model start from the same
  weights. `mae-0` is the MAE teacher of all methods, and MAE itself in claim 6.
- **Training lengths** were limited by the available time. In a pilot run with seed 0 and 900 steps, dBOT's student of
  the random teacher was far better than its teacher. A first attempt with 480 steps of 24 images was stopped during
  seed 0, because both students scored below their random teacher in the linear probe. Nothing was changed after the
  first score with the final lengths was known.
- **Scores** are top-1 accuracies on the test scans in per cent. *Fine-tuned*: {labels} labels per class,
  {finetune_steps} steps of {finetune_batch} images; networks that are compared use the same draws of labels, and no two
  seeds share a draw. *Linear probe* and *k-NN* (20 neighbours): mean of the last block's patch tokens, frozen, with all
  labels of the training split.
- **Interval.** Draws of one seed share a network and are therefore averaged first. The interval is Student's
  t-interval of the averages, one per seed (95 %, {freedom} degrees of freedom, that is ± {reach:.1f} standard deviations over
  the seeds). Its variance includes seeds and draws, but not the choice of the 357 test scans, which are the same for
  all networks.
- **Verdict.** *holds*: the whole interval is above zero (for "within a point": within ± 1). *fails*: the whole
  interval lies outside that range. *undecided*: all other cases. A claim with several deciding comparisons (in bold) holds if
  all of them hold, and fails if one of them fails. Fine-tuned accuracy decides, because it is what the papers report;
  verdicts by the other scores are shown beside it. There is no correction for multiple comparisons: about one
  interval in twenty is expected to miss.
"""


def write_page(report: dict[str, Any], page: Path, folder: Path, *, command: str) -> None:
    """Write the page, and its figures into ``folder``, which is beside or below the page."""
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
            parts.append(f'![Scores over the stages of dBOT; thin lines are single seeds]({at}/stages.png)\n')
            parts.append(spreads(report['scores']))
    parts.append(f'## Every network\n\n{networks(report["scores"])}')
    seeds = settings['seeds']
    parts.append(METHOD.format(**settings, freedom=seeds - 1, reach=quantile(seeds) / seeds**0.5))
    page.write_text('\n'.join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def summary(claims: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of claims and verdicts by each measure."""
    others = [measure for measure in MEASURES if measure != 'finetuned']
    rows = [
        [str(claim['number']), claim['title'], f'**{claim["verdict"]}**', *(claim['verdicts'][name] for name in others)]
        for claim in claims
    ]
    return table(['', 'claim', 'verdict', *(f'by {MEASURES[name]}' for name in others)], rows)


def claim_section(claim: Mapping[str, Any], picture: str) -> str:
    """Return the section of a claim with all its comparisons."""
    rows = []
    for row in claim['comparisons']:
        text = f'**{row["text"]}**' if row['decides'] else row['text']
        rows.append([text, *(cell(row['measures'][measure]) for measure in MEASURES)])
    body = table(['difference in points (95 % interval)', *MEASURES.values()], rows)
    return (
        f'## {claim["number"]}. {claim["title"]}: {claim["verdict"]}\n\n'
        f'{claim["source"]}. {claim["note"]}\n\n{body}\n'
        f'![Comparisons of claim {claim["number"]} with 95 % intervals]({picture})\n'
    )


def cell(found: Mapping[str, Any]) -> str:
    """Format mean, interval and verdict."""
    return f'{found["mean"]:+.1f} ({found["low"]:+.1f} … {found["high"]:+.1f}) {found["verdict"]}'


def spreads(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the spread over teachers 0 at each stage."""
    rows = []
    for stage, name in enumerate(('teachers 0', 'students 1', 'students 2')):
        cells = []
        for measure in MEASURES:
            by_init = [[fmean(draws) for draws in scores[measure][f'{init}-{stage}']] for init in INITS]
            cells.append(f'{fmean(stdev(values) for values in zip(*by_init, strict=True)):.2f}')
        rows.append([name, *cells])
    return table(['standard deviation over the four initial teachers, mean over the seeds', *MEASURES.values()], rows)


def networks(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of all networks and their scores."""
    rows = []
    for name in scores['finetuned']:
        seeds = [[fmean(draws) for draws in scores[measure][name]] for measure in MEASURES]
        rows.append([f'`{name}`', *(f'{fmean(values):.1f} ± {stdev(values):.1f}' for values in seeds)])
    note = 'Mean ± standard deviation over the seeds, of the means over draws. '
    names = (
        '`random-0` is the random teacher 0; `random-1` and `random-2` are students 1 and 2 that start from it. The networks '
        'of the other initial teachers are named in the same way.'
    )
    return table(['network', *MEASURES.values()], rows) + f'\n{note}{names}\n'
