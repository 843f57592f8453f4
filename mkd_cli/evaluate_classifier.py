r"""Evaluate fine-tuned classifiers on other images: ImageNet-A, -R, -Sketch, shape bias, and errors beside those of people.

    mkd evaluate-classifier CONFIG CHECKPOINT ... --classes data/imagenet/train \
        --folders a=data/imagenet-a r=data/imagenet-r sketch=data/sketch --cue-conflict data/cue-conflict [--out DIR]

    mkd evaluate-classifier CONFIG CHECKPOINT ... --model-vs-human model-vs-human/datasets --people model-vs-human/raw-data

The class folders of each data set are looked up by name among `--classes`. The table is printed, and written to
`evaluation.json` and `evaluation.md`; the comparison with people to `humans.json`, `humans.md` and `humans.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mkd_cli.command import at_least, script, usable_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('config', help='config of the fine-tuning')
    add('checkpoints', nargs='+', metavar='CHECKPOINT', help='checkpoints of its runs')
    add('--folders', nargs='+', default=[], metavar='NAME=DIR', help='data sets, each with a folder for each class')
    add('--classes', help='folder of the training images, or a file with a class name in each line (default: none; '
        '--folders needs it)')  # fmt: skip
    add('--cue-conflict', metavar='DIR', help='folder of images named like cat/cat7-elephant2.png (default: none)')
    add('--model-vs-human', type=Path, metavar='DIR', help="folder of some of model-vs-human's 17 data sets (default: none; "
        'needs --people)')  # fmt: skip
    add(
        '--people', type=Path, metavar='DIR', help="answers of people, model-vs-human's folder raw-data (default: none)"
    )
    add('--size', type=at_least(1), default=224, help='image size in pixels')
    add('--out', type=Path, default=Path('work_dirs/evaluation_classifier'), metavar='DIR', help='output folder')
    add('--batch-size', type=at_least(1), default=64, help='images at once')
    add('--workers', type=at_least(0), default=0, help='processes that read images')
    add('--device', default='cpu', help='device to compute on')


def run(args: argparse.Namespace) -> int:
    """Measure and print the table; return 1 if something could not be measured."""
    from rich.console import Console

    from mkd_plugin.reporting.evaluation_report import ClassifierPlan, evaluate_classifiers
    from mkd_plugin.reporting.human_report import HumanPlan, compare_with_people
    from mkd_plugin.utils.configs import find_config

    wrong = [entry for entry in args.folders if not all(entry.partition('='))]
    if wrong:
        raise ValueError(f'--folders {" ".join(wrong)}: give NAME=DIR.')
    if (args.model_vs_human is None) != (args.people is None):
        raise ValueError('Give both --model-vs-human DIR, the images, and --people DIR, what people answered.')
    folders = dict(entry.split('=', 1) for entry in args.folders)
    named = (*args.checkpoints, *folders.values(), args.classes, args.cue_conflict, args.model_vs_human, args.people)
    missing = [path for path in named if path and not Path(path).exists()]
    if missing:
        raise ValueError(f'There is no file or folder {missing[0]}.')
    args.config = str(find_config(args.config))
    reading = (args.size, args.batch_size, args.workers, usable_device(args.device))
    failed, plan = False, None
    if folders or args.cue_conflict or not args.people:
        plan = ClassifierPlan(folders, args.classes, args.cue_conflict, *reading)
    if args.people:
        humans = HumanPlan(args.model_vs_human, args.people, *reading)
        report = compare_with_people(args.config, args.checkpoints, humans, args.out)
        print(report.markdown(), *report.failures, args.out / 'humans.md', sep='\n')
        failed = bool(report.failures)
    if plan:
        table = evaluate_classifiers(args.config, args.checkpoints, plan, args.out)
        Console().print(table.rich())
        print(f'{args.out / "evaluation.json"}, {args.out / "evaluation.md"}')
        failed = failed or bool(table.failures)
    return int(failed)


main = script('evaluate_classifier')
