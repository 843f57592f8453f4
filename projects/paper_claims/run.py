"""Test the papers' qualitative claims at small scale and write the page of the experiment.

    python projects/paper_claims/run.py [--claim N …] [--jobs 2] [--work-dir DIR]    # on digits: docs/small_scale.md
    python projects/paper_claims/run.py --bench fashion [--data-root DIR]            # on Fashion-MNIST: docs/fashion.md
    python projects/paper_claims/run.py --report-only                                # verdicts and page from existing scores
    python projects/paper_claims/run.py --bench fashion --pilot                      # how many seeds decide a difference

Rerun the command to resume it: finished jobs are skipped. To continue on another machine, give both the same --kept file. The
page, its report.json and its figures are written to docs/ for all claims, and to the work folder for some of them or with
--smoke, unless --page is given. mmpretrain downloads Fashion-MNIST if its four files, unpacked, are not in --data-root.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mkd_cli.command import at_least, run_resumable  # noqa: E402
from mkd_plugin.reporting.experiment import run_jobs  # noqa: E402
from projects.paper_claims import digits, fashion  # noqa: E402
from projects.paper_claims.bench import Bench  # noqa: E402
from projects.paper_claims.experiment import Experiment, collect  # noqa: E402
from projects.paper_claims.page import write_page  # noqa: E402
from projects.paper_claims.pilot import PILOT, power_table  # noqa: E402
from projects.paper_claims.settings import Settings  # noqa: E402
from projects.paper_claims.verdicts import judge  # noqa: E402

BENCHES = {bench.name: bench for bench in (digits.BENCH, fashion.BENCH)}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--bench', choices=BENCHES, default='digits', help='images to test on (default: %(default)s)')
    add('--claim', type=int, nargs='+', help='numbers of claims to run (default: all)')
    add('--jobs', type=at_least(1), default=2, help='worker processes, of one thread each (default: %(default)s)')
    add('--seeds', type=at_least(2), help='number of pre-training seeds (default: 3 on digits, 6 on Fashion-MNIST)')
    add(
        '--draws',
        type=at_least(1),
        help='draws of labels for each seed (default: 10 on digits, 1 on Fashion-MNIST)',
    )
    add('--smoke', action='store_true', help='use tiny settings to test the program; the scores are meaningless')
    add(
        '--pilot',
        action='store_true',
        help='run seeds that no verdict uses, and report which differences can be decided',
    )
    add('--report-only', action='store_true', help='judge the scores in report.json again and write the page')
    add('--work-dir', type=Path, default=Path('work_dirs/paper_claims'), help='results (default: %(default)s)')
    add('--kept', type=Path, help='file of finished results to continue from (default: jobs.jsonl in --work-dir)')
    add('--data-root', type=Path, help='images (default: data/digits, written if missing, or data/fashion-mnist)')
    add('--page', type=Path, help='Markdown file to write; report.json and figures go into a folder of its name')
    args = parser.parse_args()
    bench = BENCHES[args.bench]
    numbers = sorted(claim.number for claim in bench.claims)
    args.claim = args.claim or numbers
    if unknown := sorted(set(args.claim) - set(numbers)):
        parser.error(f'--claim {unknown}: the claims are {numbers}')
    if args.pilot and (args.bench != 'fashion' or args.report_only):
        parser.error('--pilot needs --bench fashion, and runs: leave --report-only out')
    if args.page is None:
        complete = set(args.claim) == set(numbers) and not args.smoke
        args.page = (ROOT / 'docs' if complete else args.work_dir) / f'{bench.page}.md'
    if args.report_only and not report_of(args.page).is_file():
        parser.error(f'there is no {report_of(args.page)}: run without --report-only first, or give another --page')
    return args


def report_of(page: Path) -> Path:
    """Return the file with the numbers of a page."""
    return page.with_suffix('') / 'report.json'


def command_of(bench: Bench, report: Mapping[str, Any]) -> str:
    """Return the command that runs an experiment as far as a report has it."""
    words = ['python projects/paper_claims/run.py']
    words += [] if bench.name == 'digits' else [f'--bench {bench.name}']
    if bench.left_out(report):
        claims = sorted(claim['number'] for claim in report['claims'])
        words += ['--claim', *map(str, claims)]
    settings, planned = report['settings'], asdict(bench.full)
    words += [f'--seeds {settings["seeds"]}'] if settings['seeds'] != planned['seeds'] else []
    draws, usual = ({one['draws'] for one in of['finetunings'].values()} for of in (settings, planned))
    words += [f'--draws {max(draws)}'] if draws != usual else []
    return ' '.join(words)


def experiment_of(args: argparse.Namespace, bench: Bench, settings: Settings) -> Experiment:
    """Prepare the images and the folder of an experiment."""
    data = bench.images.prepare(args.data_root or Path(bench.images.root)).resolve()
    if args.seeds is not None:
        settings = replace(settings, seeds=args.seeds)
    if args.draws is not None:
        settings = settings.with_draws(args.draws)
    return Experiment(bench, settings, args.work_dir.resolve(), data, args.kept)


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the missing jobs and return the report. Raises ValueError if a job failed."""
    bench = PILOT if args.pilot else BENCHES[args.bench]
    experiment = experiment_of(args, bench, bench.smoke if args.smoke else bench.full)
    claims = bench.claims if args.pilot else bench.chosen(args.claim)
    runs = experiment.plan(dict.fromkeys(name for claim in claims for name in claim.networks))
    jobs = experiment.jobs(experiment.needed(runs))
    run_jobs(jobs, experiment.store, workers=args.jobs, backend='processes', console=console)
    return collect(experiment, claims)


def main() -> int:
    """Run or read, judge, write; return the exit code."""
    args, console = parse_args(), Console()
    bench, file = BENCHES[args.bench], report_of(args.page)
    try:
        report = json.loads(file.read_text()) if args.report_only else run(args, console)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    file.parent.mkdir(parents=True, exist_ok=True)
    if args.pilot:
        pilot = dict(**report, power=power_table(report))
        file.with_name('pilot.json').write_text(json.dumps(pilot, indent=1, ensure_ascii=False) + '\n')
        console.print(f'Written: {file.with_name("pilot.json")}')
        return 0
    if args.report_only:
        claims = bench.chosen(claim['number'] for claim in report['claims'])
        report['claims'] = judge(bench, claims, report['scores'])
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')
    write_page(bench, report, args.page, command=command_of(bench, report))
    table = Table('claim', *bench.measures.values(), title='verdicts')
    for claim in report['claims']:
        table.add_row(f'{claim["number"]}. {claim["title"]}', *claim['verdicts'].values())
    console.print(table)
    console.print(f'Page: {args.page}')
    return 0


if __name__ == '__main__':
    sys.exit(run_resumable(main))
