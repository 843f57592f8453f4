"""Show what a network sees in a folder of images: nearest neighbours, and patch features as colours, as one page.

    mkd look [NETWORK=]FILE[#PART] IMAGES --out look.html

FILE is a checkpoint in any format that the package reads, as for `mkd evaluate`. IMAGES is any folder of images; labels are not
needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mkd_cli.command import add_network_arguments, at_least, network_options, script, usable_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('model', metavar='[NETWORK=]FILE[#PART]', help='network to run')
    add('images', help='folder of images, nested or not')
    add('--out', type=Path, default=Path('look.html'), metavar='FILE.html', help='page to write (default: look.html)')
    add('--tap', default='block:-1', help='layer to read (default: block:-1)')
    add('--rows', type=at_least(1), default=8, help='images whose neighbours are shown (default: 8)')
    add('--pictures', type=at_least(1), default=12, help='images whose patches are shown (default: 12)')
    add(
        '--most',
        type=at_least(1),
        default=2000,
        metavar='IMAGES',
        help='images to search, evenly spread (default: 2000)',
    )
    add_network_arguments(parser)
    add('--device', default='cpu', help='device to compute on')


def run(args: argparse.Namespace) -> int:
    """Write the page; return the exit code."""
    if args.out.is_dir():
        raise ValueError(f'--out {args.out} is a folder, and writing would replace all that is in it. Name a file.')
    existing = next(folder for folder in args.out.absolute().parents if folder.exists())
    if args.out.suffix != '.html' or not existing.is_dir():
        raise ValueError(f'--out {args.out}: give a file that ends in .html, in a folder.')
    from mkd_plugin.evaluation.features import Feature
    from mkd_plugin.evaluation.images import Preprocessing, open_folder
    from mkd_plugin.interop.open_model import open_models
    from mkd_plugin.interop.specs import ModelSpec
    from mkd_plugin.reporting.look import look

    Feature(args.tap)
    ModelSpec(args.model).check()
    (model,) = open_models(
        [args.model], known=network_options(args.network), device=usable_device(args.device), pixels=args.pixels
    )
    model.network.tap_spec(args.tap)  # raises if there is no such block
    images = open_folder(args.images, Preprocessing.standard(model.network.image_hw), most=args.most)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    look(model, images, args.out, tap=args.tap, rows=args.rows, pictures=args.pictures)
    print(f'{args.out}: {len(images)} images')
    return 0


main = script('look')
