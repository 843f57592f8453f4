"""Follow pre-trainings on Fashion-MNIST: probe accuracy, attention distance and NMI at checkpoints, as one page.

    python projects/paper_claims/training.py [--work-dir DIR] [--data-root DIR]    # docs/fashion_training.md
    python projects/paper_claims/training.py --report-only                         # the page from its report.json

Same settings as the experiment (``run.py --bench fashion``), one seed, and no verdict. The same --work-dir saves the teachers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mkd_cli.command import run_resumable  # noqa: E402
from mkd_plugin.reporting.experiment import run_jobs  # noqa: E402
from projects.paper_claims.bench import Bench  # noqa: E402
from projects.paper_claims.claims import Claim, Comparison  # noqa: E402
from projects.paper_claims.experiment import Experiment, Run  # noqa: E402
from projects.paper_claims.fashion import BENCH as FASHION  # noqa: E402
from projects.paper_claims.page import table  # noqa: E402
from projects.paper_claims.recipes import Recipe  # noqa: E402

FOLLOWED = {
    'mae': 'MAE',
    'dbot-random': 'dBOT, from the random network',
    'maskdistill': 'MaskDistill, from the contrastive network',
    'fd': 'FD, from the contrastive network',
}
PARTS = 6  # checkpoints of a unit of pre-training
MEASURES = {'probe': 'linear probe, per cent', 'distance': 'attention distance, pixels', 'nmi': 'NMI'}
TEXT = Path(__file__).parent / 'texts' / 'training.md'


def with_checkpoints(name: str, steps: int) -> Recipe:
    """Return a recipe of the experiment with a network for every checkpoint, named after its step."""
    recipe = FASHION.recipes[name]
    every = steps // PARTS
    keep = {'default_hooks.checkpoint.interval': every, 'default_hooks.checkpoint.max_keep_ckpts': -1}
    stages = range(1, recipe.lengths + 1) if recipe.lengths > 1 else ()
    # At the end of a stage iter_….pth already has the next stage's new student.
    staged = {steps * stage: f'stage_{stage}.pth' for stage in stages}
    taken = [every * part for part in range(1, PARTS * recipe.lengths + 1)]
    networks = {f'{name}@{step}': staged.get(step, f'iter_{step}.pth') for step in taken}
    return replace(recipe, networks=networks, options=lambda *given: {**recipe.options(*given), **keep})


def followed() -> Bench:
    """Return the experiment with one seed and the checkpoints of the followed pre-trainings as its networks."""
    settings = replace(FASHION.full, seeds=1, finetunings={})
    recipes = {f'{name}-followed': with_checkpoints(name, settings.steps()) for name in FOLLOWED}
    networks = tuple(network for recipe in recipes.values() for network in recipe.networks)
    claim = Claim(0, 'training', '', '', (Comparison('', networks, ()),))
    return replace(FASHION, name='training', full=settings, recipes={**FASHION.recipes, **recipes}, claims=(claim,))


BENCH = followed()  # which worker processes import


def run(work_dir: Path, data_root: Path | None, jobs: int, console: Console) -> dict[str, Any]:
    """Train and measure what is missing; return the report. Raises ValueError if a job failed."""
    data = BENCH.images.prepare(data_root or Path(BENCH.images.root)).resolve()
    experiment, networks = Experiment(BENCH, BENCH.full, work_dir.resolve(), data), BENCH.claims[0].networks
    runs = experiment.plan(networks)
    run_jobs(experiment.jobs(runs), experiment.store, workers=jobs, backend='processes', console=console)
    courses: dict[str, Any] = {name: dict(steps=[], **{measure: [] for measure in MEASURES}) for name in FOLLOWED}
    for network in networks:
        name, step = network.split('@')
        record = experiment.store.read(experiment.key(Run('measure', network, BENCH.full.first_seed)))
        if record is None:
            raise ValueError(f'{network} is not measured. Run the same command again.')
        courses[name]['steps'].append(int(step))
        for measure in MEASURES:
            courses[name][measure].append(round(record.value[measure], 4))
    return dict(seed=BENCH.full.first_seed, unit=BENCH.full.steps(), courses=courses)


def plot(report: Mapping[str, Any], out: Path) -> None:
    """Draw every measure over the steps; a dotted line is the end of dBOT's first stage."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(11, 3.8), layout='constrained')
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for name, course in report['courses'].items():
            axis.plot(course['steps'], course[measure], 'o-', markersize=3, label=FOLLOWED[name])
        axis.axvline(report['unit'], color='black', linewidth=0.6, linestyle=':')
        axis.set_title(title, fontsize='small')
        axis.set_xlabel('steps', fontsize='x-small')
        axis.tick_params(labelsize='x-small')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize='small')
    figure.savefig(out, dpi=110)
    plt.close(figure)


def write_page(report: Mapping[str, Any], page: Path) -> None:
    """Write the page and its figure."""
    folder = page.with_suffix('')
    plot(report, folder / 'training.png')
    rows = []
    for name, course in report['courses'].items():
        values = zip(course['steps'], *(course[measure] for measure in MEASURES), strict=True)
        rows += [
            [FOLLOWED[name], f'{step:,}', f'{probe:.1f}', f'{far:.2f}', f'{nmi:.3f}']
            for step, probe, far, nmi in values
        ]
    body = table(['', 'steps', *MEASURES.values()], rows)
    page.write_text(TEXT.read_text().replace('<!-- results -->\n', body).replace('{folder}', folder.name))


def main() -> int:
    """Run or read, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--work-dir', type=Path, default=Path('work_dirs/paper_claims'), help='results (default: %(default)s)')
    add('--data-root', type=Path, help='images (default: data/fashion-mnist)')
    add('--jobs', type=int, default=2, choices=range(1, 65), metavar='N', help='workers (default: %(default)s)')
    add('--page', type=Path, default=ROOT / 'docs/fashion_training.md', help='Markdown file (default: %(default)s)')
    add('--report-only', action='store_true', help='write the page from its report.json')
    args = parser.parse_args()
    file = args.page.with_suffix('') / 'report.json'
    if args.report_only and not file.is_file():
        parser.error(f'there is no {file}: run without --report-only first, or give another --page')
    try:
        report = (
            json.loads(file.read_text())
            if args.report_only
            else run(args.work_dir, args.data_root, args.jobs, Console())
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + '\n')
    write_page(report, args.page)
    return 0


if __name__ == '__main__':
    sys.exit(run_resumable(main))
