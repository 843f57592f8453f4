"""Write the embedded handwritten digits as an image folder, which the *_digits configs read.

mkd make-digits [DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mkd_cli.command import script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('root', type=Path, nargs='?', default=Path('data/digits'), metavar='DIR',
                        help='folder to write (default: %(default)s)')  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the images; return the exit code."""
    from mkd_plugin.datasets import write_digits

    print(f'The digits are in {write_digits(args.root)}.')
    return 0


main = script('make_digits')
