"""Export a checkpoint: to another library's format, or as a graph for deployment.

    mkd export SRC DST --to {timm,hf,mmpretrain,mae,openclip,backbone,mkd}     as `mkd convert` does
    mkd export SRC DST --to {onnx,torch,torchscript} [--tap TAP] [--pool cls|mean|none] [--half]
        [--img-size H [W] | --any-size]

A graph takes RGB in [0, 1], any number of images at once, and returns features; normalisation is part of it. Images have the
network's own size, that of `--img-size`, or with `--any-size` any number of whole patches. The written file is opened again in
its runtime (ONNX Runtime, torch.export, TorchScript) and compared with the network.
"""

from __future__ import annotations

import argparse

from mkd_cli import convert
from mkd_cli.command import network_options, script

GRAPHS = ('onnx', 'torch', 'torchscript')
ONLY_GRAPHS = ('tap', 'pool', 'half', 'any_size')
ONLY_WEIGHTS = ('part', 'prefix', 'release', 'objective', 'allow_nonfinite')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, and those of graphs."""
    convert.add_arguments(parser, targets=(*convert.TARGETS, *GRAPHS))
    add = parser.add_argument
    add('--tap', default='block:-1', help='for graphs: layer to read (default: block:-1)')
    add('--pool', default='mean', choices=['cls', 'mean', 'none'], help='for graphs: how tokens become a vector')
    add('--half', action='store_true', help='for onnx: store and compute in float16')
    add(
        '--any-size',
        action='store_true',
        help='for graphs: take images of any size, by resizing positions in the graph',
    )


def run(args: argparse.Namespace) -> int:
    """Export; return the exit code."""
    refuse_unused(args)
    if args.to not in GRAPHS:
        return convert.run(args)
    size = convert.image_size(args.img_size)
    if size and args.any_size:
        raise ValueError('--img-size fixes the size of the images, --any-size leaves it open: give one of them.')
    from mkd_plugin.interop.deploy import export_graph
    from mkd_plugin.interop.open_model import open_models

    (model,) = open_models([args.source], known=network_options(args.network), device='cpu')
    error, bound = export_graph(
        model,
        args.destination,
        args.to,
        tap=args.tap,
        pool=args.pool,
        half=args.half,
        image_hw=size,
        any_size=args.any_size,
    )
    height, width = size or model.network.image_hw
    taken = f'any size in patches of {model.network.patch_size}' if args.any_size else f'{height} × {width} px'
    runtime = {'onnx': 'ONNX Runtime', 'torch': 'torch.export', 'torchscript': 'TorchScript'}[args.to]
    for note in model.notes:
        print(f'note: {note}')
    print(
        f'{args.destination}: {args.pool} of {args.tap}, images of {taken}; in {runtime} it differs by at most {error:.1e} of '
        f'the largest magnitude (allowed: {bound:.0e}) at batches of 1, 2 and 5' + (' and three sizes' * args.any_size)
    )
    return 0


def refuse_unused(args: argparse.Namespace) -> None:
    """Raise ValueError for options that the target does not read."""
    defaults = argparse.ArgumentParser()
    add_arguments(defaults)
    unread = ONLY_WEIGHTS if args.to in GRAPHS else ONLY_GRAPHS
    given = [name for name in unread if getattr(args, name) != defaults.get_default(name)]
    if given:
        hint = ' Name a part of a file as FILE#PART.' if args.to in GRAPHS else ''
        raise ValueError(f'--{given[0].replace("_", "-")} has no effect with --to {args.to}: leave it out.{hint}')


main = script('export')
