"""Convert a checkpoint of a ViT from any known format, check the result in the target library, and write it.

mkd convert SRC DST --to {mkd,mmpretrain,timm,hf,mae,openclip,backbone} [--part student|teacher|decoder]
    [--img-size H [W]] [--release NAME] [--network num_heads=12 activation=gelu]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mkd_cli.command import at_least, did_you_mean, network_options, script

TARGETS = ('mkd', 'timm', 'hf', 'mmpretrain', 'mae', 'openclip', 'backbone')
PARTS = ('student', 'teacher', 'decoder')


def add_arguments(parser: argparse.ArgumentParser, targets: Sequence[str] = TARGETS) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('source', help='checkpoint file, or folder of a Hugging Face model')
    add('destination', help="file to write (.safetensors or .pth); for 'hf' without a suffix a folder with the config")
    add('--to', required=True, choices=targets, help='format to write')
    add('--part', default='student', choices=PARTS, help='part of a pre-training checkpoint of ours')
    add('--prefix', help='prefix of the network in the source (default: the only network there)')
    add(
        '--img-size',
        type=at_least(1),
        nargs='+',
        metavar='PIXELS',
        help='resize the positions for images of this size, or height and width (default: as in the source)',
    )
    add(
        '--release',
        metavar='NAME',
        help='release that the source is, listed in docs/teachers.md; gives options and pixel statistics (default: none)',
    )
    add(
        '--network',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='options that the source does not state: num_heads, activation, norm_eps, img_size',
    )
    add('--objective', default='pixel', help="name of the decoder's objective in our format")
    add(
        '--allow-nonfinite',
        action='store_true',
        help='convert weights that are NaN or infinite too, without comparing outputs',
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and print the report; return the exit code."""
    from mkd_plugin.checkpoint.releases import RELEASES
    from mkd_plugin.interop.convert import convert_checkpoint

    size = image_size(args.img_size)
    if args.release not in (None, *RELEASES):
        hint = did_you_mean(args.release, RELEASES)
        raise ValueError(f'unknown release {args.release!r}.{hint} docs/teachers.md lists all: {", ".join(RELEASES)}.')
    folder = Path(args.destination)
    if folder.is_dir() and not (args.to == 'hf' and (folder / 'config.json').is_file()):
        raise ValueError(
            f'{folder} is a folder, and writing would replace all that is in it. Name a file, or a new folder.'
        )
    done = convert_checkpoint(
        args.source,
        args.destination,
        args.to,
        part=args.part,
        prefix=args.prefix,
        img_size=size[0] if size and size[0] == size[1] else size,
        release=None if args.release is None else RELEASES[args.release],
        options=network_options(args.network) or None,
        objective=args.objective,
        allow_nonfinite=args.allow_nonfinite,
    )
    show(done, args.destination)
    return 0


def image_size(numbers: Sequence[int] | None) -> tuple[int, int] | None:
    """Return height and width that `--img-size` gives. Raises ValueError for more than two numbers."""
    if numbers is not None and len(numbers) > 2:
        raise ValueError(f'--img-size {" ".join(map(str, numbers))}: give one number, or height and width.')
    return None if numbers is None else (numbers[0], numbers[-1])


def show(done: Any, destination: str) -> None:
    """Print the table of tensors and the outcome of the checks."""
    from rich.console import Console
    from rich.markup import escape

    from mkd_plugin.interop.export import TOLERANCE

    console = Console()
    console.print(escape(done.report.title()))
    console.print(done.report.table())
    for title, error in done.checks:
        bound = f'equal: at most {TOLERANCE:.0e} is allowed'
        outcome = 'not run' if error is None else f'differs by {error:.1e} of the largest magnitude ({bound})'
        console.print(f'{escape(title)}: {outcome}')
    if done.nonfinite:
        console.print(f'[bold]not finite[/]: {escape(", ".join(done.nonfinite[:6]))}; {len(done.nonfinite)} tensors')
    if done.left_out:
        console.print(f'left out: {", ".join(done.left_out)}')
    console.print(f'wrote {escape(destination)}')


main = script('convert')
