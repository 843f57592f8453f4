"""Write the features of a folder of images to an .npz file, for use with any other tool.

    mkd features [NETWORK=]FILE[#PART] IMAGES --out features.npz

FILE is a checkpoint in any format that the package reads, as for `mkd evaluate`. IMAGES is a folder with a folder for each
class. The file holds one array (N, D) for each layer and pooling, such as `block:-1_mean`, beside `names` (N paths), `labels`
(N class ids) and `classes`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mkd_cli.command import add_network_arguments, at_least, network_options, script, usable_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('model', metavar='[NETWORK=]FILE[#PART]', help='network to run')
    add('images', help='folder of images, with a folder for each class')
    add('--out', type=Path, required=True, metavar='FILE.npz', help='file to write')
    add('--taps', default='block:-1', help="layers to read, such as 'block:-1,block:5,output'")
    add('--pools', default='cls,mean', help='how tokens become one vector: cls, mean, or both')
    add(
        '--resize',
        type=at_least(1),
        metavar='PIXELS',
        help='short edge before the crop (default: image size * 256 / 224)',
    )
    add_network_arguments(parser)
    add('--batch-size', type=at_least(1), default=64, help='images at once')
    add('--workers', type=at_least(0), default=0, help='processes that read images')
    add('--device', default='cpu', help='device to compute on')


def run(args: argparse.Namespace) -> int:
    """Compute the features and write them; return the exit code."""
    import numpy as np
    import torch

    from mkd_plugin.evaluation.features import Feature, compute
    from mkd_plugin.evaluation.images import Preprocessing, open_images
    from mkd_plugin.interop.open_model import open_models
    from mkd_plugin.interop.specs import ModelSpec

    if args.out.suffix != '.npz':
        raise ValueError(f'--out {args.out}: give a file that ends in .npz.')
    ModelSpec(args.model).check()
    which = [Feature(tap, pool) for tap in args.taps.split(',') for pool in args.pools.split(',')]
    (subject,) = open_models(
        [args.model], known=network_options(args.network), device=usable_device(args.device), pixels=args.pixels
    )
    crop = subject.network.image_hw
    images = open_images(args.images, Preprocessing(crop, args.resize) if args.resize else Preprocessing.standard(crop))
    batches = images.batches(0, len(images), batch_size=args.batch_size, workers=args.workers)
    found = [compute(subject, batch, which) for batch in batches]
    arrays: dict[str, Any] = {}
    for one in which:
        arrays[f'{one.tap}_{one.pool}'] = torch.cat([batch[one].cpu() for batch in found]).numpy()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(args.out, names=images.names, labels=images.labels.numpy(), classes=images.classes, **arrays)
    print(f'{args.out}: {len(images)} images, {", ".join(f"{name} {array.shape}" for name, array in arrays.items())}')
    return 0


main = script('features')
