"""Convert a ViT's checkpoint from any known format: table, check against the other libraries, then the file.

python tools/convert_checkpoint.py SRC DST --to {mkd,mmpretrain,timm,hf,mae,openclip} [--part student|teacher|decoder]
    [--img-size H [W]] [--release NAME] [--network num_heads=12 activation=gelu]
"""

from __future__ import annotations

import argparse
import sys

from mmengine.config import DictAction
from rich.console import Console
from rich.markup import escape

from mkd_plugin.checkpoint.releases import RELEASES
from mkd_plugin.interop.convert import PARTS, Conversion, convert_checkpoint
from mkd_plugin.interop.libraries import TARGETS


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='file, or folder of Hugging Face')
    parser.add_argument('destination', help=".safetensors, .pth; for 'hf' without a suffix a folder with its config")
    parser.add_argument('--to', required=True, choices=['mkd', *TARGETS])
    parser.add_argument('--part', default='student', choices=PARTS, help='of a pre-training checkpoint of ours')
    parser.add_argument('--prefix', help='where the network is in the source, if there are several')
    parser.add_argument('--img-size', type=int, nargs='+', help='resize positions for images of this size, pixels')
    parser.add_argument(
        '--release', choices=sorted(RELEASES), help='which release the source is: options, pixel statistics'
    )
    parser.add_argument(
        '--network',
        nargs='+',
        action=DictAction,
        help='options that are known: num_heads, activation, norm_eps, img_size',
    )
    parser.add_argument('--objective', default='pixel', help="name of the decoder's objective in our format")
    args = parser.parse_args(arguments)
    if args.img_size is not None and len(args.img_size) > 2:
        parser.error('--img-size takes one number, or height and width')
    return args


def show(done: Conversion, destination: str) -> None:
    """Print table and checks."""
    console = Console()
    console.print(escape(done.report.title()))
    console.print(done.report.table())
    for title, error in done.checks:
        outcome = 'not run' if error is None else f'differs by {error:.1e} of the largest magnitude'
        console.print(f'{escape(title)}: {outcome}')
    if done.left_out:
        console.print(f'left out: {", ".join(done.left_out)}')
    console.print(f'wrote {escape(destination)}')


def main() -> int:
    """Convert; 1 and a message if it cannot be done."""
    args = parse_args()
    size = args.img_size
    try:
        done = convert_checkpoint(
            args.source,
            args.destination,
            args.to,
            part=args.part,
            prefix=args.prefix,
            img_size=None if size is None else size[0] if len(size) == 1 else (size[0], size[1]),
            release=None if args.release is None else RELEASES[args.release],
            options=args.network,
            objective=args.objective,
        )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    show(done, args.destination)
    return 0


if __name__ == '__main__':
    sys.exit(main())
