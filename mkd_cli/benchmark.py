"""Fine-tune checkpoints for classification, detection and segmentation, and write one report.

    mkd benchmark CHECKPOINT ... [--against scratch] [--seeds N]              on generated scenes of digits
    mkd benchmark CHECKPOINT ... --suite full --processes 8 [--recipe dbot]   on ImageNet-1K, COCO and ADE20K

Every training runs tools/train.py (or tools/dist_train.sh) with --resume. Rerun an interrupted command to resume: a training is
skipped if it finished with the same config, checkpoint (by its sha256), seed, options and data. If one fails, the report shows
the end of its log and the others continue. OUT/index.html is a single file with tables, curves and predictions drawn on
images; OUT/report.json has every number.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from mkd_cli.command import INTERRUPTED, at_least, script

SUITES = ('digit-scenes', 'full')
TASKS = ('classification', 'detection', 'segmentation')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add('checkpoints', nargs='+', metavar='[NAME=]CHECKPOINT', help='pre-trained checkpoints')
    add('--suite', choices=SUITES, default=SUITES[0], help='data sets to use')
    add(
        '--tasks',
        nargs='+',
        choices=TASKS,
        default=[],
        metavar='TASK',
        help=f'some of {", ".join(TASKS)} (default: all)',
    )
    add(
        '--against',
        metavar='scratch|NAME',
        help='start that the others are compared with, seed by seed (default: no comparison)',
    )
    add('--seeds', type=at_least(1), help='fine-tuning runs of each task (default: 3; 1 for the suite full)')
    add('--recipe', default='dbot', help='method whose fine-tuning recipes the suite full uses')
    add('--arch', choices=['base', 'large'], default='base', help='network of the suite full')
    add('--config', nargs='+', default=[], metavar='TASK=FILE', help="configs to use in place of the suite's")
    add('--cfg-options', nargs='+', default=[], metavar='[TASK:]KEY=VALUE', help='settings of the configs to change')
    add('--processes', type=at_least(1), default=1, help='processes of a training: GPUs')
    add('--jobs', type=at_least(1), help='trainings at a time (default: 2 on a CPU with at least two cores, else 1)')
    add('--pictures', type=at_least(0), default=4, help='images to draw predictions on')
    add('--out', type=Path, metavar='DIR', help='output folder (default: work_dirs/benchmark_SUITE)')
    add('--report-only', action='store_true', help='train nothing; report what is finished')


def settings_of(args: argparse.Namespace) -> Any:
    """Return the settings that the arguments describe."""
    import torch

    from mkd_plugin.reporting.benchmark import Settings
    from mkd_plugin.utils.configs import parse_options

    for text in args.cfg_options:
        task, _, rest = text.partition(':')
        parse_options([rest if task in TASKS else text])
    several = args.processes == 1 and not torch.cuda.is_available() and (os.cpu_count() or 1) > 1
    names = ('suite', 'tasks', 'seeds', 'against', 'recipe', 'arch', 'processes', 'pictures')
    return Settings(
        configs=dict(text.partition('=')[::2] for text in args.config),
        options=args.cfg_options,
        jobs=args.jobs or (2 if several else 1),
        **{name: getattr(args, name) for name in names},
    )


def run(args: argparse.Namespace) -> int:
    """Benchmark; return 1 if a training failed or none could run, 130 if it was interrupted."""
    from rich.console import Console

    from mkd_plugin.reporting.benchmark import benchmark

    out = args.out or Path(f'work_dirs/benchmark_{args.suite}')
    try:
        report = benchmark(
            args.checkpoints,
            settings_of(args),
            out=out,
            command=shlex.join(['mkd', 'benchmark', *args.arguments]),
            console=Console(),
            train=not args.report_only,
        )
    except KeyboardInterrupt:
        print(f'Interrupted. Rerun the command to resume from {out}.', file=sys.stderr)
        return INTERRUPTED
    print(f'{out}/index.html and {out}/report.json')
    return 0 if report['jobs'] and not any(job['failed'] for job in report['jobs']) else 1


main = script('benchmark')
