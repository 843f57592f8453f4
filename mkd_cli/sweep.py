"""Fine-tune over several learning rates or numbers of frozen blocks, and plot the scores.

    mkd sweep CONFIG --rates 1e-4 3e-4 1e-3 [--start NAME=FILE ...] [--seeds N] [--out DIR]
    mkd sweep CONFIG --frozen 0 2 4 [--start original=A.pth distilled=B.pth]

Every value is one training per starting checkpoint and seed, by tools/train.py. OUT/sweep.json has every score, OUT/sweep.png
one line per starting checkpoint. Rerun an interrupted command to resume: finished trainings are skipped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mkd_cli.command import INTERRUPTED, at_least, script
from mkd_cli.train import add_config_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('config', help='config of a fine-tuning, or its name')
    values = parser.add_mutually_exclusive_group(required=True)
    values.add_argument('--rates', nargs='+', type=float, metavar='RATE', help='peak learning rates (no default)')
    values.add_argument(
        '--frozen',
        nargs='+',
        type=at_least(0),
        metavar='BLOCKS',
        help='numbers of first blocks that are not trained (no default)',
    )
    add(
        '--start',
        nargs='+',
        default=[],
        metavar='[NAME=]FILE',
        help="checkpoints to start from, or scratch for random weights (default: the config's own, or else scratch)",
    )
    add('--seeds', type=at_least(1), default=1, help='trainings of each value and start')
    add('--processes', type=at_least(1), default=1, help='processes of a training: GPUs')
    add('--jobs', type=at_least(1), default=1, help='trainings at a time')
    add('--out', type=Path, default=Path('work_dirs/sweep'), metavar='DIR', help='output folder')
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Train and plot; return 1 if a training failed, 130 if it was interrupted."""
    from rich.console import Console

    from mkd_plugin.reporting.benchmark import Settings
    from mkd_plugin.reporting.sweep import sweep
    from mkd_plugin.utils.configs import parse_options

    option = 'frozen' if args.rates is None else 'rates'
    try:
        report = sweep(
            args.config,
            option,
            getattr(args, option),
            args.start,
            settings=Settings(seeds=args.seeds, processes=args.processes, jobs=args.jobs),
            options=parse_options(args.cfg_options),
            out=args.out,
            command=shlex.join(['mkd', 'sweep', *args.arguments]),
            console=Console(),
        )
    except KeyboardInterrupt:
        print(f'Interrupted. Rerun the command to resume from {args.out}.', file=sys.stderr)
        return INTERRUPTED
    print(f'{args.out}/sweep.json and {args.out}/sweep.png')
    return 1 if report['failed'] else 0


main = script('sweep')
