"""Measure how long, how big and which method to pre-train on few images, and write docs/small_data.md's tables.

    python projects/small_data/run.py [--fashion DIR] [--work-dir DIR]    # all cells that are not finished
    python projects/small_data/run.py --report-only                       # write the tables again from their report.json

The folder of --fashion holds the four files of Fashion-MNIST, unpacked; mmpretrain downloads them if they are missing. Cells
run one at a time, on as many threads as OMP_NUM_THREADS says. Rerun the command to resume it. ``--finished`` runs nothing and
reports the cells that are finished.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import mkd_plugin  # noqa: E402
from mkd_cli.command import run_resumable  # noqa: E402
from mkd_plugin.datasets import write_digits  # noqa: E402
from mkd_plugin.reporting.experiment import run_jobs  # noqa: E402
from mkd_plugin.reporting.store import Store  # noqa: E402
from mkd_plugin.utils.files import write_whole  # noqa: E402
from projects.small_data.cells import cells, jobs_of  # noqa: E402
from projects.small_data.page import write_page  # noqa: E402


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--fashion', type=Path, default=Path('data/fashion-mnist'), help='Fashion-MNIST (default: %(default)s)')
    add('--digits', type=Path, default=Path('data/digits'), help='written if missing (default: %(default)s)')
    add('--work-dir', type=Path, default=Path('work_dirs/small_data'), help='results (default: %(default)s)')
    add(
        '--page',
        type=Path,
        default=ROOT / 'docs/small_data.md',
        help='Markdown file (default: %(default)s)',
    )
    add('--finished', action='store_true', help='run nothing; report the cells that are finished')
    add('--report-only', action='store_true', help='write the tables again from report.json')
    args = parser.parse_args()
    if args.report_only and not report_of(args.page).is_file():
        parser.error(f'there is no {report_of(args.page)}: run without --report-only first, or give another --page')
    return args


def report_of(page: Path) -> Path:
    """Return the file with the numbers of a page."""
    return page.with_suffix('') / 'report.json'


def main() -> int:
    """Run or read the cells, and write the tables; return the exit code."""
    args = parse_args()
    file = report_of(args.page)
    if not args.report_only:
        roots = dict(digits=str(write_digits(args.digits).resolve()), fashion=str(args.fashion.resolve()))
        store = Store(args.work_dir)
        jobs = jobs_of(cells(), roots, store)
        if not args.finished and run_jobs(list(jobs.values()), store, console=Console()).failures:
            return 1
        done = {cell: record for cell, job in jobs.items() if (record := store.read(job.key))}
        entries = [dict(cell=asdict(cell), scores=shortened(record.value)) for cell, record in done.items()]
        left_out = [str(cell) for cell in jobs if cell not in done]
        file.parent.mkdir(parents=True, exist_ok=True)
        report = dict(version=mkd_plugin.__version__, left_out=left_out, cells=entries)
        write_whole(file, json.dumps(report, indent=1) + '\n')
    write_page(json.loads(file.read_text()), args.page)
    return 0


def shortened(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    """Round to two digits: 10,000 test images have no more."""
    return {name: [round(value, 2) for value in values] for name, values in scores.items()}


if __name__ == '__main__':
    sys.exit(run_resumable(main))
