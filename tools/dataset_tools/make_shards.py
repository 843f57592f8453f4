"""Pack a folder of images, however deeply nested, into tar shards in WebDataset's form.

    python tools/dataset_tools/make_shards.py SRC DST [--size 256] [--quality 90] [--shard-size 10000] [--labels] [--verify]

Train on them with `--cfg-options data_root=DST` and a *_shards config (docs/data.md). Stopped, it goes on where it was;
shards appear only when they are whole, and have the same bytes whatever the number of workers. SRC is only read.
`--verify` reads everything again afterwards. The exit code is 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mkd_plugin.datasets.shards.checking import verify_shards
from mkd_plugin.datasets.shards.writing import MANIFEST, Options, write_shards


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='SRC', help='the folder of the images')
    parser.add_argument('target', type=Path, metavar='DST', help='the folder of the shards')
    parser.add_argument(
        '--size', type=int, default=0, help='shrink the shorter side to this; by default files as they are'
    )
    parser.add_argument('--quality', type=int, default=90, help='JPEG quality of what is shrunk (default: 90)')
    parser.add_argument('--shard-size', type=int, default=10_000, help='images in a shard (default: 10000)')
    parser.add_argument('--labels', action='store_true', help='the first folder level is the class')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes (default: one a core)')
    parser.add_argument('--verify', action='store_true', help='read everything again afterwards')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, verify, report; the exit code."""
    args, console = parse_args(arguments), Console()
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        try:
            options = Options(size=args.size, quality=args.quality, shard_size=args.shard_size, labels=args.labels)
            writing = bar.add_task('write', total=None)
            manifest = write_shards(
                args.source,
                args.target,
                options=options,
                workers=args.workers,
                begin=lambda done, total: bar.update(writing, completed=done, total=total),
                step=lambda images: bar.advance(writing, images),
            )
            problems = []
            if args.verify:
                reading = bar.add_task('verify', total=sum(entry['images'] for entry in manifest['shards'].values()))
                problems = verify_shards(args.target, step=lambda images: bar.advance(reading, images))
        except (OSError, ValueError) as error:
            console.print(f'[bold red]stopped[/] {escape(str(error))}', soft_wrap=True)
            return 1
    entries = manifest['shards'].values()
    skipped = [(path, why) for entry in entries for path, why in entry['skipped']]
    for path, why in skipped:
        console.print(f'[yellow]left out[/] {escape(path)}: {escape(why)}', soft_wrap=True)
    for problem in problems:
        console.print(f'[bold red]problem[/] {escape(problem)}', soft_wrap=True)
    images, size = sum(entry['images'] for entry in entries), sum(entry['bytes'] for entry in entries)
    checked = '' if not args.verify else ', verified' if not problems else ', damaged'
    console.print(
        f'{images:,} images in {len(entries)} shards of {args.target} ({size / 2**20:,.1f} MiB), {len(skipped)} left out'
        f'{checked}; {MANIFEST} has the hashes.',
        soft_wrap=True,
    )
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
