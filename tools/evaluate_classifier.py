"""Judge fine-tuned classifiers by other images: ImageNet-A, -R, -Sketch, and the shape bias on cue-conflict images.

    python tools/evaluate_classifier.py CONFIG CHECKPOINT… --classes data/imagenet/train \\
        --folders a=data/imagenet-a r=data/imagenet-r sketch=data/sketch --cue-conflict data/cue-conflict [--out DIR]

A folder's class folders are found among `--classes` by their names. The table goes to the terminal, to `evaluation.json` and
to `evaluation.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import nn

from mkd_plugin.evaluation.classifier import folder_accuracy, load_classifier, read_classes, shape_bias
from mkd_plugin.evaluation.images import Preprocessing, open_images
from mkd_plugin.evaluation.protocols import Row
from mkd_plugin.evaluation.table import EvaluationTable, check_writable, short_names

Measure = Callable[[nn.Module], Iterator[Row]]


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of the fine-tuning')
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT', help='of its runs')
    parser.add_argument('--folders', nargs='+', default=[], metavar='NAME=DIR', help='with a folder for each class')
    parser.add_argument('--classes', help="the training images' folder, or a file with a class's name in each line")
    parser.add_argument('--cue-conflict', metavar='DIR', help='with names as cat/cat7-elephant2.png')
    parser.add_argument('--size', type=int, default=224, help='of the images, pixels')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/evaluation_classifier'))
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--device', default='cpu')
    return parser.parse_args(arguments)


def measure_folder(model: nn.Module, name: str, folder: str, args: argparse.Namespace) -> Iterator[Row]:
    """Top-1 on a folder."""
    images = open_images(folder, Preprocessing.customary((args.size, args.size)))
    loading = dict(batch_size=args.batch_size, workers=args.workers)
    top1 = folder_accuracy(model, images, read_classes(args.classes), **loading)
    yield Row('folder', name, 'classifier', top1, note=f'only the {len(images.classes)} classes of {name} were allowed')


def measure_bias(model: nn.Module, args: argparse.Namespace) -> Iterator[Row]:
    """Shape bias, without resizing where images are of the size."""
    images = open_images(args.cue_conflict, Preprocessing((args.size, args.size), args.size))
    found = shape_bias(model, images, batch_size=args.batch_size, workers=args.workers)
    note = f'shape {found.shape}, texture {found.texture}, neither {found.other}, without a conflict {found.dropped}'
    yield Row('cue-conflict', 'shape bias, per cent', 'classifier', 100 * found.bias, note=note)


def measures(args: argparse.Namespace) -> dict[str, Measure]:
    """What to measure, by name. Raises ValueError if it cannot be."""
    wrong = [entry for entry in args.folders if not all(entry.partition('='))]
    if wrong or (args.folders and not args.classes) or not (args.folders or args.cue_conflict):
        raise ValueError('Give --folders NAME=DIR … with --classes, or --cue-conflict DIR, or both.')
    found: dict[str, Measure] = {}
    for name, _, folder in (entry.partition('=') for entry in args.folders):
        found[name] = partial(measure_folder, name=name, folder=folder, args=args)
    if args.cue_conflict:
        found['cue-conflict'] = partial(measure_bias, args=args)
    return found


def run(args: argparse.Namespace) -> EvaluationTable:
    """Measure all checkpoints; what fails is among the table's failures."""
    wanted, names = measures(args), short_names(args.checkpoints)
    check_writable(args.out)
    columns = {name: dict(path=path) for name, path in zip(names, args.checkpoints, strict=True)}
    table = EvaluationTable(columns, vars(args))
    for name, path in zip(names, args.checkpoints, strict=True):
        try:
            model = load_classifier(args.config, path).to(args.device)
        except (OSError, ValueError) as error:
            table.fail(name, 'loading', error)
            continue
        for title, measure in wanted.items():
            try:
                for row in measure(model):
                    table.add(name, row)
            except ValueError as error:
                table.fail(name, title, error)
            table.write(args.out)
    table.write(args.out)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and show; 1 if something could not be measured, 2 if nothing could be begun."""
    args = parse_args(arguments)
    try:
        table = run(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(table.rich())
    print(f'{args.out / "evaluation.json"}, {args.out / "evaluation.md"}')
    return 1 if table.failures else 0


if __name__ == '__main__':
    sys.exit(main())
