"""Pre-train a ViT on a folder of images without labels: choose a recipe, write its config, train it.

    mkd pretrain IMAGES [--method METHOD] [--student SIZE] [--teacher [NAME=]FILE ...] [--out DIR]

IMAGES is a folder of images (nested or not), a folder of tar shards, or a list of paths. Everything else has a default that
depends on the number of images, the device and the method; the plan says why (docs/pretrain.md has the rules). The config is
written to DIR/pretrain.py, and `mkd train` runs it as any other.
"""

from __future__ import annotations

import argparse

from mkd_cli.command import script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('images', help='folder of images or of tar shards, or a list of paths')
    add('--method', choices=['dbot', 'mae', 'maskdistill', 'dmae', 'hybrid'], help='method (default: by the teachers)')
    add('--student', choices=['ti', 's', 'b', 'l'], help='size of the ViT (default: by the number of images)')
    add('--teacher', nargs='+', default=[], metavar='[NAME=]FILE', help='checkpoints of the teachers')
    add('--size', type=int, metavar='PIXELS', help='side of the crops (default: 224 if images and device allow)')
    add('--epochs', type=float, help='epochs of the whole run (default: by steps)')
    add('--batch', default='auto', help='images of an update (default: auto)')
    add('--out', metavar='DIR', help='folder to write to (default: work_dirs/pretrain_IMAGES)')
    add('--devices', default='auto', help="'auto', 'cpu', or a number of GPUs (default: auto)")
    add('--resume', action='store_true', help='continue the run in --out')
    add('--wandb', metavar='PROJECT', help='record the run with Weights & Biases (default: off)')
    add('--plan', action='store_true', help='write the config and stop')


def run(args: argparse.Namespace) -> int:
    """Pre-train; return the exit code."""
    if args.batch != 'auto' and not (args.batch.isdecimal() and int(args.batch) > 0):
        raise ValueError(f"--batch {args.batch}: give 'auto' or a number of images.")
    if args.epochs is not None and not 0 < args.epochs < float('inf'):
        raise ValueError(f'--epochs {args.epochs}: give a number above 0.')
    from mkd_plugin.pretraining.run import TrainingStopped, pretrain

    try:
        pretrain(
            args.images,
            method=args.method,
            student=args.student,
            teachers=args.teacher,
            size=args.size,
            epochs=args.epochs,
            batch=None if args.batch == 'auto' else int(args.batch),
            out=args.out,
            devices=args.devices,
            resume=args.resume,
            plan_only=args.plan,
            wandb=args.wandb,
        )
    except TrainingStopped as stopped:
        return stopped.code
    return 0


main = script('pretrain')
