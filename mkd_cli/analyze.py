"""Measure networks on images and compare them: figures on one page, every number in a JSON file.

    mkd analyze [NAME=][NETWORK=]FILE[#PART] ... --data FOLDER [--only ...] [--flavour cl-vs-mim|dbot] [--out DIR]

FILE is a checkpoint in any format that the package reads (its own, MAE, DINO, DeiT, CLIP, timm, Hugging Face, ...). NETWORK
names its network: a release listed in docs/teachers.md, or timm:MODEL. PART is one of the teachers in the file, such as
`boot`, or the prefix of one of its networks. Hessian and landscape of a fine-tuned classifier are those of its own loss.
Rerun an interrupted command to resume; finished measurements are skipped.
"""

from __future__ import annotations

import argparse
import sys

from mkd_cli.command import INTERRUPTED, add_network_arguments, at_least, network_options, script, usable_device

SPECIFICATION = '[NAME=][NETWORK=]FILE[#PART]'
MEASUREMENTS = (
    'maps', 'attention', 'fourier', 'variance', 'token-spectrum', 'image-spectrum', 'similarity', 'hessian', 'landscape',
)  # fmt: skip
FLAVOURS = ('cl-vs-mim', 'dbot')
DIRECTIONS = ('random', 'hessian')


def place(text: str) -> tuple[float, float]:
    """Parse '0.5,0.25' into (0.5, 0.25)."""
    row, _, column = text.partition(',')
    return float(row), float(column)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('checkpoints', nargs='+', metavar=SPECIFICATION, help='networks to compare')
    add(
        '--data',
        required=True,
        metavar='FOLDER',
        help='folder of images; its sub-folders are the classes, which hessian and landscape need',
    )
    add('--out', default='work_dirs/analysis', metavar='DIR', help='folder of the page and the results')
    add(
        '--only',
        nargs='+',
        default=[],
        metavar='NAME',
        help=f'measurements to make, of {", ".join(MEASUREMENTS)} (default: all, but hessian and landscape only up to 10 '
        'million parameters)',
    )
    add('--flavour', choices=FLAVOURS, default=FLAVOURS[0], help='published convention to follow')
    add('--images', type=at_least(1), default=64, help='number of images')
    add('--batch', type=at_least(1), default=16, help='images at once')
    add(
        '--queries',
        nargs='+',
        type=place,
        default=((0.5, 0.5), (0.25, 0.25)),
        metavar='ROW,COLUMN',
        help='places of the patches whose attention is drawn, as fractions of the image (default: 0.5,0.5 0.25,0.25)',
    )
    add('--directions', choices=DIRECTIONS, default='random', help='directions of the loss landscape')
    add('--landscape-size', type=at_least(1), default=21, help='points along a direction, an odd number')
    add_network_arguments(parser)
    add('--device', help='device to compute on (default: cuda if there is a GPU, else cpu)')


def run(args: argparse.Namespace) -> int:
    """Write the report; return 1 if something could not be measured, 130 if it was interrupted."""
    from mkd_plugin.reporting.analysis import Settings, analyze

    names = ('only', 'flavour', 'images', 'batch', 'queries', 'directions', 'landscape_size')
    settings = Settings(**{name: getattr(args, name) for name in names})
    try:
        report = analyze(
            args.checkpoints,
            data=args.data,
            out=args.out,
            settings=settings,
            known=network_options(args.network),
            pixels=args.pixels,
            device=usable_device(args.device),
        )
    except KeyboardInterrupt:
        print(f'Interrupted. Rerun the command to resume from {args.out}.', file=sys.stderr)
        return INTERRUPTED
    print(f'{args.out}/index.html and {args.out}/report.json')
    return 1 if report.failed else 0


main = script('analyze')
