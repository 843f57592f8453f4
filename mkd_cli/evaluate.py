"""Evaluate frozen networks by k-NN, linear probes and few-shot learning: one table for all checkpoints.

    mkd evaluate [NAME=][NETWORK=]FILE[#PART] ... --protocols knn,linear,fewshot --data ROOT [--out DIR]

FILE is a checkpoint in any format that the package reads. NETWORK names its network: a release listed in docs/teachers.md, or
timm:MODEL. PART is one of the teachers in the file, such as `boot`, or the prefix of one of its networks. ROOT holds `train`
and `val`, each with a folder for each class (or give lists with --train-list and --val-list). After each protocol the table
is written to `evaluation.json` and `evaluation.md`. Features are computed once and cached.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mkd_cli.analyze import SPECIFICATION
from mkd_cli.command import (
    add_network_arguments,
    at_least,
    escaped,
    integers,
    network_options,
    numbers,
    script,
    shortened,
    usable_device,
)

PROTOCOLS = ('knn', 'linear', 'fewshot')
KS = (10, 20, 100, 200)
SHOTS = (2, 4, 8, 16, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('checkpoints', nargs='+', metavar=SPECIFICATION, help='networks to evaluate')
    add('--protocols', default=','.join(PROTOCOLS), help='protocols to run, separated by commas')
    add('--data', type=Path, required=True, metavar='ROOT', help='folder with train and val')
    add('--train-list', type=Path, metavar='FILE', help='a path below ROOT/train and a class id in each line (default: '
        'the folders below ROOT/train are the classes)')  # fmt: skip
    add('--val-list', type=Path, metavar='FILE', help='the same for ROOT/val (default: its folders)')
    add(
        '--resize',
        type=at_least(1),
        metavar='PIXELS',
        help='short edge before the crop (default: image size * 256 / 224)',
    )
    add('--out', type=Path, default=Path('work_dirs/evaluation'), metavar='DIR', help='output folder')
    add('--cache', type=Path, metavar='DIR', help='folder of cached features (default: OUT/cache)')
    add_network_arguments(parser)
    add('--taps', default='block:-1', help="layers to read, such as 'block:-1,block:5,output'")
    add('--pools', default='cls,mean', help='how tokens become one vector: cls, mean, or both')
    add('--ks', type=integers, default=KS, help='numbers of neighbours for k-NN')
    add('--shots', type=integers, default=SHOTS, help='labels for each class in few-shot learning')
    add('--draws', type=at_least(1), default=3, help='draws of the labels for few-shot learning')
    add('--lars', action='store_true', help="use MAE's linear probe (LARS, batch 16384), on centre crops")
    add('--rates', type=numbers, help='learning rates of the linear probe, for a batch of 256 (default: '
        '0.01,0.03,0.1,0.3,1,3; 0.03,0.1,0.3,1 with --lars)')  # fmt: skip
    add('--epochs', type=at_least(1), help='epochs of the linear probe (default: 90)')
    add('--probe-batch', type=at_least(1), help='batch of the linear probe (default: 256; 16384 with --lars)')
    add('--few-rates', type=numbers, help='learning rates of few-shot learning (default: 0.01,0.03,0.1,0.3,1,3)')
    add('--few-epochs', type=at_least(1), help='epochs of few-shot learning (default: 100)')
    add('--batch-size', type=at_least(1), default=64, help='images at once when computing features')
    add('--workers', type=at_least(0), default=0, help='processes that read images')
    add('--device', default='cpu', help='device to compute on')


def plan_of(args: argparse.Namespace) -> Any:
    """Return the plan that the arguments describe."""
    from mkd_plugin.evaluation import FEW, LARS, SGD, Feature, Plan, shortened

    probe = shortened(LARS if args.lars else SGD, epochs=args.epochs, batch_size=args.probe_batch)
    few = shortened(FEW, epochs=args.few_epochs)
    return Plan(
        features=tuple(Feature(tap, pool) for tap in args.taps.split(',') for pool in args.pools.split(',')),
        ks=args.ks,
        shots=args.shots,
        draws=args.draws,
        probe=replace(probe, rates=args.rates or probe.rates),
        few=replace(few, rates=args.few_rates or few.rates),
        device=usable_device(args.device),
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table; return 1 if something could not be evaluated."""
    from rich.console import Console

    from mkd_plugin.evaluation import Data, FeatureStore
    from mkd_plugin.interop.specs import parse_specs
    from mkd_plugin.reporting.evaluation_report import evaluate

    data, plan = Data(args.data, args.train_list, args.val_list, args.resize), plan_of(args)
    known = network_options(args.network)
    data.check()
    for spec in parse_specs(args.checkpoints):
        spec.check()
    store = FeatureStore(args.cache or args.out / 'cache', batch_size=args.batch_size, workers=args.workers)
    table = evaluate(
        args.checkpoints,
        args.protocols.split(','),
        data,
        args.out,
        plan=plan,
        store=store,
        known=known,
        pixels=args.pixels,
    )
    if not table.rows:
        for entry in table.failures:
            print(f'error: {escaped(shortened(entry["reason"]))}', file=sys.stderr)
        return 1
    console = Console()
    console.print(table.rich())
    console.print(f'{args.out / "evaluation.json"}, {args.out / "evaluation.md"}', highlight=False, soft_wrap=True)
    return 1 if table.failures or table.unmeasured() else 0


main = script('evaluate')
