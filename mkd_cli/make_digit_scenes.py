"""Write scenes of handwritten digits in the formats of COCO and ADE20K, which the *digit-scenes* configs read.

    mkd make-digit-scenes [DIR] [--seed 0] [--train 1000] [--val 200]

The same arguments give the same bytes; a folder that holds anything else is refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mkd_cli.command import at_least, progress_bar, script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('root', type=Path, nargs='?', default=Path('data/digit_scenes'), metavar='DIR',
                        help='folder to write (default: %(default)s)')  # fmt: skip
    add('--seed', type=at_least(0), default=0, help='seed of the scenes')
    add('--train', type=at_least(1), default=1000, help='scenes for training')
    add('--val', type=at_least(1), default=200, help='scenes for validation')


def run(args: argparse.Namespace) -> int:
    """Write the scenes; return the exit code."""
    from rich.console import Console
    from rich.markup import escape

    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / 'projects' / 'digit_scenes').is_dir():
        raise ValueError('This command needs a checkout of the repository: an installed wheel has no projects/.')
    sys.path.insert(0, str(checkout))
    from projects.digit_scenes.writing import write_digit_scenes

    console, total = Console(), args.train + args.val
    with progress_bar(console) as bar:
        task = bar.add_task('scenes', total=total)
        root = write_digit_scenes(
            args.root, seed=args.seed, train=args.train, val=args.val, step=lambda: bar.advance(task)
        )
        bar.update(task, completed=total)
    console.print(f'{args.train:,} scenes for training and {args.val:,} for validation are in {escape(str(root))}.')
    return 0


main = script('make_digit_scenes')
