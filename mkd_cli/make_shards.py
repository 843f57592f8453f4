"""Pack a folder of images, however deeply nested, into tar shards in WebDataset's format.

    mkd make-shards SRC DST [--size 256] [--quality 90] [--raw] [--shard-size 10000] [--labels] [--verify]

To train on them, pass `--cfg-options data_root=DST` with a *_shards config (docs/data.md). Rerun an interrupted command to
resume. A shard appears only when it is complete, and has the same bytes for any number of workers. SRC is only read. `--verify`
reads all shards again; the exit code is 1 if one is damaged.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mkd_cli.command import at_least, progress_bar, script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('source', type=Path, metavar='SRC', help='folder of the images')
    add('target', type=Path, metavar='DST', help='folder of the shards')
    add(
        '--size',
        type=at_least(0),
        default=0,
        help='shrink the shorter side to this (default: 0, keep files as they are)',
    )
    add('--quality', type=at_least(1), default=90, help='JPEG quality of shrunk images')
    add('--raw', action='store_true', help='store pixels instead of JPEG: no decoding, about 8 times the bytes')
    add('--shard-size', type=at_least(1), default=10_000, help='images in a shard')
    add('--labels', action='store_true', help='the first folder level is the class')
    add('--workers', type=at_least(1), help='processes (default: one for each core)')
    add('--verify', action='store_true', help='read everything again afterwards')


def run(args: argparse.Namespace) -> int:
    """Write, verify and report; return the exit code."""
    from rich.console import Console

    if args.source.resolve() in (args.target.resolve(), *args.target.resolve().parents):
        raise ValueError(
            f'{args.target} lies in {args.source}: the shards would be among the images. Name another folder.'
        )
    console = Console()
    with progress_bar(console) as bar:
        manifest, problems = write_and_verify(args, bar)
    show(args, console, manifest, problems)
    return 1 if problems else 0


def write_and_verify(args: argparse.Namespace, bar: Any) -> tuple[Any, list[str]]:
    """Return the manifest, and what --verify found wrong."""
    from mkd_plugin.datasets.shards.writing import Options, verify_shards, write_shards

    size, quality = args.size, args.quality
    options = Options(size=size, quality=quality, shard_size=args.shard_size, labels=args.labels, raw=args.raw)
    writing = bar.add_task('write', total=None)
    manifest = write_shards(
        args.source,
        args.target,
        options=options,
        workers=args.workers or os.cpu_count() or 1,
        begin=lambda done, total: bar.update(writing, completed=done, total=total),
        step=lambda images: bar.advance(writing, images),
    )
    if not args.verify:
        return manifest, []
    reading = bar.add_task('verify', total=sum(entry['images'] for entry in manifest['shards'].values()))
    return manifest, verify_shards(args.target, step=lambda images: bar.advance(reading, images))


def show(args: argparse.Namespace, console: Any, manifest: Any, problems: list[str]) -> None:
    """Print skipped files, problems and sums."""
    from rich.markup import escape

    from mkd_plugin.datasets.shards.writing import MANIFEST

    entries = manifest['shards'].values()
    skipped = [(path, why) for entry in entries for path, why in entry['skipped']]
    for path, why in skipped:
        console.print(f'[yellow]skipped[/] {escape(path)}: {escape(why)}', soft_wrap=True)
    for problem in problems:
        console.print(f'[bold red]problem[/] {escape(problem)}', soft_wrap=True)
    images, size = sum(entry['images'] for entry in entries), sum(entry['bytes'] for entry in entries)
    checked = '' if not args.verify else ', verified' if not problems else ', damaged'
    console.print(
        f'{images:,} images in {len(entries)} shards of {args.target} ({size / 2**20:,.1f} MiB), {len(skipped)} skipped'
        f'{checked}; {MANIFEST} has the hashes.',
        soft_wrap=True,
    )


main = script('make_shards')
