"""The papers' qualitative claims at small scale, on the embedded digits: docs/small_scale.md and its pictures.

    python projects/paper_claims/reproduce_shapes.py [--claim N …] [--jobs 2] [--work-dir DIR]    all claims, or some
    python projects/paper_claims/reproduce_shapes.py --report-only    verdicts and page again, from its scores

Finished runs are recognised by their config and seed and are not repeated; an interrupted one is resumed exactly, or (if
it takes only seconds) started again. The page, its report.json and its pictures go to docs/ for all claims, and into the
work dir for some of them or with --smoke; --page names another place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reproduce.claims import CLAIMS
from reproduce.jobs import Experiment
from reproduce.page import write_page
from reproduce.pool import run_jobs
from reproduce.report import MEASURES, collect, judge
from reproduce.settings import FULL, SMOKE
from rich.console import Console
from rich.table import Table

from mkd_plugin.datasets import write_digits

ROOT = Path(__file__).resolve().parents[2]
COMMAND = 'python projects/paper_claims/reproduce_shapes.py'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = [claim.number for claim in CLAIMS]
    parser.add_argument('--claim', type=int, nargs='+', choices=numbers, default=numbers, help='claims to run')
    parser.add_argument('--jobs', type=at_least(1), default=2, help='worker processes, of one thread each')
    parser.add_argument('--seeds', type=at_least(2), help=f'pre-training seeds (default {FULL.seeds})')
    parser.add_argument('--draws', type=at_least(1), help=f'draws of labels for each seed (default {FULL.draws})')
    parser.add_argument('--smoke', action='store_true', help='tiny settings, to see it run; the scores mean nothing')
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='judge the scores in the report again and write the page; run nothing',
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/reproduce_shapes'))
    parser.add_argument('--data-root', type=Path, default=Path('data/digits'))
    parser.add_argument('--page', type=Path, help='Markdown file; report and pictures go into a folder of its name')
    args = parser.parse_args()
    if args.page is None:
        whole = set(args.claim) == set(numbers) and not args.smoke
        args.page = (ROOT / 'docs' if whole else args.work_dir) / 'small_scale.md'
    if args.report_only and not report_of(args.page).is_file():
        parser.error(f'there is no {report_of(args.page)}: run it without --report-only first, or name a --page')
    return args


def report_of(page: Path) -> Path:
    """Where the numbers of a page are."""
    return page.with_suffix('') / 'report.json'


def at_least(least: int) -> Callable[[str], int]:
    """Reads a number, and refuses one that is too small: an interval over seeds needs two."""

    def read(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f'{number}: it must be at least {least}')
        return number

    return read


def main() -> None:
    """Run what is missing, judge, write."""
    args, console = parse_args(), Console()
    file = report_of(args.page)
    if args.report_only:
        report = json.loads(file.read_text())
        numbers = [claim['number'] for claim in report['claims']]
        report['claims'] = [judge(claim, report['scores']) for claim in CLAIMS if claim.number in numbers]
    else:
        chosen = {name: value for name in ('seeds', 'draws') if (value := getattr(args, name)) is not None}
        settings = replace(SMOKE if args.smoke else FULL, **chosen)
        data_root = write_digits(args.data_root).resolve()
        experiment = Experiment(settings, args.work_dir.resolve(), data_root)
        claims = [claim for claim in CLAIMS if claim.number in args.claim]
        networks = dict.fromkeys(name for claim in claims for name in claim.networks)
        run_jobs(experiment, experiment.plan(networks), workers=args.jobs, console=console)
        report = collect(experiment, claims)
        file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')
    write_page(report, args.page, file.parent, command=COMMAND)
    table = Table('claim', *MEASURES.values(), title='verdicts')
    for claim in report['claims']:
        table.add_row(f'{claim["number"]}. {claim["title"]}', *claim['verdicts'].values())
    console.print(table)
    console.print(f'Page: {args.page}')


if __name__ == '__main__':
    main()
