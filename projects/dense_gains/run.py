"""Measure what pre-training gains on dense tasks, with the same tuning for every start, and write the page.

    python projects/dense_gains/run.py [--jobs 2] [--work-dir DIR] [--fashion DIR]    # docs/dense_gains.md
    python projects/dense_gains/run.py --report-only                                  # the page from its report.json
    python projects/dense_gains/run.py --smoke                                        # tiny settings, to test the program

Rerun the command to resume it: finished jobs are skipped, and an interrupted pre-training continues from its last checkpoint.
To continue on another machine, give both the same --kept file. mmpretrain downloads Fashion-MNIST if its four files, unpacked,
are not in --fashion.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402

from mkd_cli.command import at_least, run_resumable  # noqa: E402
from mkd_plugin.reporting.experiment import run_jobs  # noqa: E402
from projects.dense_gains.experiment import Experiment, Run  # noqa: E402
from projects.dense_gains.page import write_page  # noqa: E402
from projects.dense_gains.plots import plot_scenes  # noqa: E402
from projects.dense_gains.recipes import STARTS  # noqa: E402
from projects.dense_gains.report import collect  # noqa: E402
from projects.dense_gains.scenes import write_natural_scenes  # noqa: E402
from projects.dense_gains.settings import FULL, SMOKE  # noqa: E402
from projects.dense_gains.verdicts import judge  # noqa: E402

SMOKE_STARTS = ('scratch', 'mae')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--jobs', type=at_least(1), default=2, help='worker processes (default: %(default)s)')
    add(
        '--work-dir', type=Path, default=Path('work_dirs/dense_gains'), help='scenes and results (default: %(default)s)'
    )
    add(
        '--fashion',
        type=Path,
        default=Path('data/fashion-mnist'),
        help='folder of Fashion-MNIST (default: %(default)s)',
    )
    add('--kept', type=Path, help='file of finished results to continue from (default: jobs.jsonl in --work-dir/jobs)')
    add('--smoke', action='store_true', help='use tiny settings and two starts; the scores are meaningless')
    add('--report-only', action='store_true', help='judge the scores in report.json again and write the page')
    add('--page', type=Path, help='Markdown file to write; report.json and figures go into a folder of its name')
    args = parser.parse_args()
    if args.page is None:
        args.page = (args.work_dir if args.smoke else ROOT / 'docs') / 'dense_gains.md'
    if args.report_only and not report_of(args.page).is_file():
        parser.error(f'there is no {report_of(args.page)}: run without --report-only first, or give another --page')
    return args


def report_of(page: Path) -> Path:
    """Return the file with the numbers of a page."""
    return page.with_suffix('') / 'report.json'


def experiment_of(args: argparse.Namespace) -> Experiment:
    """Write the scenes unless they exist, and return the experiment."""
    settings = SMOKE if args.smoke else FULL
    scenes = args.work_dir.resolve() / 'scenes'
    write_natural_scenes(scenes, args.fashion, side=settings.side, seed=0, counts=dict(settings.counts))
    starts = SMOKE_STARTS if args.smoke else STARTS
    return Experiment(settings, args.work_dir.resolve() / 'jobs', scenes, starts, args.kept)


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the missing jobs and return the report. Raises ValueError if a job failed."""
    experiment = experiment_of(args)
    backend = 'inline' if args.jobs == 1 else 'processes'

    def work(runs: list[Run]) -> None:
        run_jobs(
            experiment.jobs(experiment.needed(runs)),
            experiment.store,
            workers=args.jobs,
            backend=backend,
            console=console,
        )

    work(experiment.grid('short'))
    work(experiment.grid('long'))  # of the settings that were the best of the short ones
    work(experiment.finals())  # with the settings that were the best of all
    report = collect(experiment)
    plot_scenes(experiment.scenes, picture_folder(args.page) / 'scenes.png')
    return report


def picture_folder(page: Path) -> Path:
    """Return the folder of a page's figures, which exists afterwards."""
    folder = page.with_suffix('')
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> int:
    """Run or read, judge, write; return the exit code."""
    args, console = parse_args(), Console()
    file = report_of(args.page)
    try:
        report = json.loads(file.read_text()) if args.report_only else run(args, console)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    report['verdict'] = judge(report['scores'])
    picture_folder(args.page)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')
    write_page(report, args.page)
    console.print(f'Page: {args.page}; verdicts: {report["verdict"]["verdicts"]}')
    return 0


if __name__ == '__main__':
    sys.exit(run_resumable(main))
