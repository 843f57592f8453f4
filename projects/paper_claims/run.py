"""Test the papers' qualitative claims at small scale, on the embedded digits, and write docs/small_scale.md.

    python projects/paper_claims/run.py [--claim N …] [--jobs 2] [--work-dir DIR]    # all claims, or some
    python projects/paper_claims/run.py --report-only                                # verdicts and page from existing scores

Rerun the command to resume it: finished jobs are skipped. The page, its report.json and its figures are written to docs/ for
all claims, and to the work folder for some of them or with --smoke, unless --page is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mkd_plugin.datasets import write_digits  # noqa: E402
from mkd_plugin.reporting.experiment import run_jobs  # noqa: E402
from projects.paper_claims.claims import CLAIMS  # noqa: E402
from projects.paper_claims.experiment import Experiment, collect  # noqa: E402
from projects.paper_claims.page import write_page  # noqa: E402
from projects.paper_claims.settings import FULL, SMOKE  # noqa: E402
from projects.paper_claims.verdicts import MEASURES, judge  # noqa: E402

COMMAND = 'python projects/paper_claims/run.py'


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, numbers = parser.add_argument, [claim.number for claim in CLAIMS]
    add('--claim', type=int, nargs='+', choices=numbers, default=numbers, help='claims to run (default: all)')
    add('--jobs', type=at_least(1), default=2, help='worker processes, of one thread each (default: %(default)s)')
    add('--seeds', type=at_least(2), help=f'number of pre-training seeds (default: {FULL.seeds})')
    add('--draws', type=at_least(1), help=f'draws of labels for each seed (default: {FULL.draws})')
    add('--smoke', action='store_true', help='use tiny settings to test the program; the scores are meaningless')
    add('--report-only', action='store_true', help='judge the scores in report.json again and write the page')
    add('--work-dir', type=Path, default=Path('work_dirs/paper_claims'), help='results (default: %(default)s)')
    add('--data-root', type=Path, default=Path('data/digits'), help='written if missing (default: %(default)s)')
    add('--page', type=Path, help='Markdown file to write; report.json and figures go into a folder of its name')
    args = parser.parse_args()
    if args.page is None:
        complete = set(args.claim) == set(numbers) and not args.smoke
        args.page = (ROOT / 'docs' if complete else args.work_dir) / 'small_scale.md'
    if args.report_only and not report_of(args.page).is_file():
        parser.error(f'there is no {report_of(args.page)}: run without --report-only first, or give another --page')
    return args


def report_of(page: Path) -> Path:
    """Return the file with the numbers of a page."""
    return page.with_suffix('') / 'report.json'


def at_least(least: int) -> Callable[[str], int]:
    """Return a parser of numbers that are not too small: an interval over seeds needs two."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f'{number}: it must be at least {least}')
        return number

    return parse


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the missing jobs and return the report. Raises ValueError if a job failed."""
    chosen = {name: value for name in ('seeds', 'draws') if (value := getattr(args, name)) is not None}
    settings = replace(SMOKE if args.smoke else FULL, **chosen)
    experiment = Experiment(settings, args.work_dir.resolve(), write_digits(args.data_root).resolve())
    claims = [claim for claim in CLAIMS if claim.number in args.claim]
    runs = experiment.plan(dict.fromkeys(name for claim in claims for name in claim.networks))
    run_jobs(experiment.jobs(runs), experiment.store, workers=args.jobs, backend='processes', console=console)
    return collect(experiment, claims)


def main() -> int:
    """Run or read, judge, write; return the exit code."""
    args, console = parse_args(), Console()
    file = report_of(args.page)
    if args.report_only:
        report = json.loads(file.read_text())
        numbers = [claim['number'] for claim in report['claims']]
        report['claims'] = [judge(claim, report['scores']) for claim in CLAIMS if claim.number in numbers]
    else:
        try:
            report = run(args, console)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')
    write_page(report, args.page, file.parent, command=COMMAND)
    table = Table('claim', *MEASURES.values(), title='verdicts')
    for claim in report['claims']:
        table.add_row(f'{claim["number"]}. {claim["title"]}', *claim['verdicts'].values())
    console.print(table)
    console.print(f'Page: {args.page}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
