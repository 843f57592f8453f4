"""Write scenes of real handwritten digits in COCO's and ADE20K's formats, which the *digit-scenes* configs read:

    python tools/dataset_tools/make_digit_scenes.py [DIR] [--seed 0] [--train 1000] [--val 200]

DIR is data/digit_scenes by default. The same arguments give the same bytes; a folder that holds anything else is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mkd_plugin.datasets.digit_scenes import NUM_SCENES, write_digit_scenes


def main(arguments: Sequence[str] | None = None) -> int:
    """Write them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path, nargs='?', default=Path('data/digit_scenes'), metavar='DIR')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train', type=int, default=NUM_SCENES['train'], help='scenes for training')
    parser.add_argument('--val', type=int, default=NUM_SCENES['val'], help='scenes for validation')
    args, console = parser.parse_args(arguments), Console()
    columns = (
        TextColumn('scenes'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task('', total=args.train + args.val)
        try:
            root = write_digit_scenes(
                args.root, seed=args.seed, train=args.train, val=args.val, step=lambda: bar.advance(task)
            )
        except (OSError, ValueError) as error:
            bar.update(task, visible=False)
            console.print(f'[bold red]stopped[/] {escape(str(error))}', soft_wrap=True)
            return 1
        bar.update(task, completed=args.train + args.val)
    console.print(f'{args.train:,} scenes for training and {args.val:,} for validation are in {escape(str(root))}.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
