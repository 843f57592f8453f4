"""Export a checkpoint: to another library's format, or as a graph for deployment.

    mkd export SRC DST --to {timm,hf,mmpretrain,mae,openclip,mkd}     as `mkd convert` does
    mkd export SRC DST --to {onnx,torch,torchscript} [--tap TAP] [--pool cls|mean|none] [--half]

A graph takes RGB in [0, 1] of the network's own size, any number of images at once, and returns features; normalisation is part
of it. The written file is opened again in its runtime (ONNX Runtime, torch.export, TorchScript) and compared with the network.
"""

from __future__ import annotations

import argparse

from mkd_cli import convert
from mkd_cli.command import network_options, script

GRAPHS = ('onnx', 'torch', 'torchscript')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, and those of graphs."""
    convert.add_arguments(parser, targets=(*convert.TARGETS, *GRAPHS))
    add = parser.add_argument
    add('--tap', default='block:-1', help='for graphs: layer to read (default: block:-1)')
    add('--pool', default='mean', choices=['cls', 'mean', 'none'], help='for graphs: how tokens become a vector')
    add('--half', action='store_true', help='for onnx: store and compute in float16')


def run(args: argparse.Namespace) -> int:
    """Export; return the exit code."""
    if args.to not in GRAPHS:
        return convert.run(args)
    from mkd_plugin.interop.deploy import export_graph
    from mkd_plugin.interop.open_model import open_models

    (model,) = open_models([args.source], known=network_options(args.network), device='cpu')
    error, bound = export_graph(model, args.destination, args.to, tap=args.tap, pool=args.pool, half=args.half)
    height, width = model.network.image_hw
    runtime = {'onnx': 'ONNX Runtime', 'torch': 'torch.export', 'torchscript': 'TorchScript'}[args.to]
    print(
        f'{args.destination}: {args.pool} of {args.tap}, images of {height} × {width} px; in {runtime} it differs by at most '
        f'{error:.1e} of the largest magnitude (allowed: {bound:.0e}) at batches of 1, 2 and 5'
    )
    return 0


main = script('export')
