"""Judge frozen networks by k-NN, linear probes and few labels: one table for all checkpoints.

    python tools/evaluate.py [NAME=][NETWORK=]FILE[#PART] … --protocols knn,linear,fewshot --data ROOT [--out DIR]

FILE is a checkpoint of any format that the package reads. NETWORK says which network it is of: a release
(docs/teachers.md), or timm:MODEL. PART is one of a file's own teachers, such as `boot`, or the prefix of one of its networks.
ROOT has `train` and `val`, each with a folder for each class (or lists: `--train-list`, `--val-list`). The table goes to the
terminal, to `evaluation.json` and to `evaluation.md`, after each protocol; features are computed once and kept in the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import DictAction
from rich.console import Console

from mkd_plugin.evaluation import (
    FEW,
    KS,
    LARS,
    PROTOCOLS,
    SGD,
    SHOTS,
    Data,
    Feature,
    FeatureStore,
    Plan,
    evaluate,
    shortened,
)
from mkd_plugin.interop.specs import SPECIFICATION
from mkd_plugin.interop.subjects import PIXELS


def integers(text: str) -> tuple[int, ...]:
    """'10,20' → (10, 20)."""
    return tuple(int(part) for part in text.split(','))


def numbers(text: str) -> tuple[float, ...]:
    """'0.1,0.3' → (0.1, 0.3)."""
    return tuple(float(part) for part in text.split(','))


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='+', metavar=SPECIFICATION)
    parser.add_argument('--protocols', default=','.join(PROTOCOLS), help=f'some of {",".join(PROTOCOLS)}')
    parser.add_argument('--data', type=Path, required=True, metavar='ROOT')
    parser.add_argument('--train-list', type=Path, help='path below ROOT/train and class id in each line')
    parser.add_argument('--val-list', type=Path, help='likewise, for ROOT/val')
    parser.add_argument('--resize', type=int, help='short edge before the crop, pixels (image size · 256 / 224)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/evaluation'))
    parser.add_argument('--cache', type=Path, help='for features (OUT/cache)')
    parser.add_argument(
        '--network', nargs='+', action=DictAction, help='options that files do not state: num_heads=…, img_size=…'
    )
    parser.add_argument('--pixels', choices=PIXELS, help='statistics of pixels, for files that do not state them')
    parser.add_argument('--taps', default='block:-1', help="layers, as 'block:-1,block:5,output'")
    parser.add_argument('--pools', default='cls,mean', help='cls, mean, or both')
    parser.add_argument('--ks', type=integers, default=KS, help='neighbours of k-NN')
    parser.add_argument('--shots', type=integers, default=SHOTS, help='labels a class of few-shot')
    parser.add_argument('--draws', type=int, default=3, help='draws of these labels')
    parser.add_argument('--lars', action='store_true', help="MAE's linear probe (LARS, batch 16384), on centre crops")
    parser.add_argument('--rates', type=numbers, help='learning rates of the probe, for a batch of 256')
    parser.add_argument('--epochs', type=int, help='of the probe (90)')
    parser.add_argument('--probe-batch', type=int, help='of the probe (256; 16384 with --lars)')
    parser.add_argument('--few-rates', type=numbers, help='learning rates of few-shot')
    parser.add_argument('--few-epochs', type=int, help='of few-shot (100)')
    parser.add_argument('--batch-size', type=int, default=64, help='images at once, while features are computed')
    parser.add_argument('--workers', type=int, default=0, help='processes that read images')
    parser.add_argument('--device', default='cpu')
    return parser.parse_args(arguments)


def plan_of(args: argparse.Namespace) -> Plan:
    """What to measure. Raises ValueError for what cannot be."""
    probe = shortened(LARS if args.lars else SGD, epochs=args.epochs, batch_size=args.probe_batch)
    few = shortened(FEW, epochs=args.few_epochs)
    return Plan(
        features=tuple(Feature(tap, pool) for tap in args.taps.split(',') for pool in args.pools.split(',')),
        ks=args.ks,
        shots=args.shots,
        draws=args.draws,
        probe=replace(probe, rates=args.rates or probe.rates),
        few=replace(few, rates=args.few_rates or few.rates),
        device=args.device,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and show; 1 if something could not be measured, 2 if nothing could be begun."""
    args = parse_args(arguments)
    store = FeatureStore(args.cache or args.out / 'cache', batch_size=args.batch_size, workers=args.workers)
    data = Data(args.data, args.train_list, args.val_list, args.resize)
    try:
        plan = plan_of(args)
        protocols = args.protocols.split(',')
        table = evaluate(
            args.checkpoints,
            protocols,
            data,
            args.out,
            plan=plan,
            store=store,
            known=args.network,
            pixels=args.pixels,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    console.print(table.rich())
    console.print(f'{args.out / "evaluation.json"}, {args.out / "evaluation.md"}', highlight=False, soft_wrap=True)
    return 1 if table.failures else 0


if __name__ == '__main__':
    sys.exit(main())
