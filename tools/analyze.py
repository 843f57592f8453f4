"""Measure networks on images, and put them side by side: figures on one page, every number in a JSON.

python tools/analyze.py [NAME=][NETWORK=]FILE[#PART] … --data FOLDER [--only …] [--flavour cl-vs-mim|dbot] [--out DIR]

FILE is a checkpoint of any format that the package reads (its own, MAE, DINO, DeiT, CLIP, timm, Hugging Face, …). NETWORK
says which network it is of: a release (docs/teachers.md), or timm:MODEL. PART is one of a file's own teachers, such as
`boot`, or the prefix of one of its networks. An interrupted run goes on with what is done.
"""

from __future__ import annotations

import argparse
import sys

import torch
from mmengine.config import DictAction

from mkd_plugin.analysis.checks import FLAVOURS
from mkd_plugin.analysis.report import MEASUREMENTS, Settings, analyze
from mkd_plugin.analysis.report.settings import DIRECTIONS
from mkd_plugin.interop.specs import SPECIFICATION
from mkd_plugin.interop.subjects import PIXELS


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='+', metavar=SPECIFICATION)
    parser.add_argument(
        '--data', required=True, help='folder of images; sub-folders are classes, which curvature needs'
    )
    parser.add_argument('--out', default='work_dirs/analysis', help='page, JSON and results (default: %(default)s)')
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='NAME',
        help=f'of {", ".join(MEASUREMENTS)}; by default all, hessian and landscape only up to 10 million parameters',
    )
    parser.add_argument('--flavour', default=Settings.flavour, choices=FLAVOURS, help='public convention')
    parser.add_argument('--images', type=int, default=Settings.images, help='how many (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=Settings.batch, help='images at once (default: %(default)s)')
    parser.add_argument(
        '--queries',
        nargs='+',
        type=place,
        default=Settings.queries,
        metavar='ROW,COLUMN',
        help='fractions of the image',
    )
    parser.add_argument('--directions', default=Settings.directions, choices=DIRECTIONS, help='of the landscape')
    parser.add_argument('--landscape-size', type=int, default=Settings.landscape_size, help='points a direction, odd')
    parser.add_argument(
        '--network', nargs='+', action=DictAction, help='options that files do not state: num_heads=…, img_size=…'
    )
    parser.add_argument('--pixels', choices=PIXELS, help='statistics of pixels, for files that do not state them')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='default: %(default)s')
    return parser.parse_args(arguments)


def place(text: str) -> tuple[float, float]:
    """``0.5,0.25`` → (0.5, 0.25)."""
    row, _, column = text.partition(',')
    return float(row), float(column)


def main(arguments: list[str] | None = None) -> int:
    """Write the report. 1 if something could not be measured, 130 if it was interrupted."""
    args = parse_args(arguments)
    try:
        settings = Settings(
            only=args.only,
            flavour=args.flavour,
            images=args.images,
            batch=args.batch,
            queries=args.queries,
            directions=args.directions,
            landscape_size=args.landscape_size,
        )
        report = analyze(
            args.checkpoints,
            data=args.data,
            out=args.out,
            settings=settings,
            known=args.network,
            pixels=args.pixels,
            device=args.device,
        )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'Interrupted. The same command goes on with what {args.out} holds.', file=sys.stderr)
        return 130
    print(f'{args.out}/index.html and {args.out}/report.json')
    return 1 if report.failed else 0


if __name__ == '__main__':
    sys.exit(main())
