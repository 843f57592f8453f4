"""Fine-tune a pre-training for classification, detection and segmentation in turn; one report about it.

    bash tools/benchmark_all.sh CHECKPOINT… [--against scratch] [--seeds N]              on scenes of digits, made here
    bash tools/benchmark_all.sh CHECKPOINT… --suite full --processes 8 [--recipe dbot]   on ImageNet-1K, COCO and ADE20K

Every training is one of tools/train.py (or tools/dist_train.sh) with --resume. Interrupted, the same command goes on with
what is done; a training counts as done for the very same config, checkpoint (by its sha256), seed, options and data only.
One that fails is named with the end of its log, and the others go on. OUT/index.html has tables, curves and predictions
drawn on images and needs nothing beside it; OUT/report.json has every number.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console

from mkd_plugin.benchmark import Settings, benchmark
from mkd_plugin.benchmark.suites import SUITES, TASKS


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='+', metavar='[NAME=]CHECKPOINT')
    parser.add_argument('--suite', choices=SUITES, default=Settings.suite, help='default: %(default)s')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=[], help='some of them (default: all)')
    parser.add_argument('--against', metavar='scratch|NAME', help='what differences are taken to, seed by seed')
    parser.add_argument('--seeds', type=int, help='of fine-tuning (default: 3, full: 1)')
    parser.add_argument('--recipe', default=Settings.recipe, help='full: whose fine-tuning (default: %(default)s)')
    parser.add_argument('--arch', choices=['base', 'large'], default=Settings.arch, help='full (default: %(default)s)')
    parser.add_argument('--config', nargs='+', default=[], metavar='TASK=FILE', help='a config in place of the suite’s')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='[TASK:]KEY=VALUE', help='as for tools/train.py'
    )
    parser.add_argument('--processes', type=int, default=1, help='of a training: GPUs (default: %(default)s)')
    parser.add_argument(
        '--jobs', type=int, help='trainings at a time (default: 2 on a CPU with two cores or more, else 1)'
    )
    parser.add_argument('--pictures', type=int, default=Settings.pictures, help='images to draw (default: %(default)s)')
    parser.add_argument('--out', type=Path, help='default: work_dirs/benchmark_SUITE')
    parser.add_argument('--report-only', action='store_true', help='train nothing: a report on what is done')
    return parser.parse_args(arguments)


def settings_of(args: argparse.Namespace) -> Settings:
    """What they ask for. Raises ValueError for what cannot be."""
    several = args.processes == 1 and not torch.cuda.is_available() and (os.cpu_count() or 1) > 1
    return Settings(
        suite=args.suite,
        tasks=args.tasks,
        seeds=args.seeds,
        against=args.against,
        recipe=args.recipe,
        arch=args.arch,
        configs=dict(text.partition('=')[::2] for text in args.config),
        options=args.cfg_options,
        processes=args.processes,
        jobs=args.jobs or (2 if several else 1),
        pictures=args.pictures,
    )


def main(arguments: list[str] | None = None) -> int:
    """Benchmark. 1 if a training failed, nothing could be trained or something is wrong; 130 if it was interrupted."""
    args = parse_args(arguments)
    out = args.out or Path(f'work_dirs/benchmark_{args.suite}')
    command = shlex.join(['bash', 'tools/benchmark_all.sh', *(sys.argv[1:] if arguments is None else arguments)])
    try:
        report = benchmark(
            args.checkpoints,
            settings_of(args),
            out=out,
            command=command,
            console=Console(),
            train=not args.report_only,
        )
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'Interrupted. The same command goes on with what {out} holds.', file=sys.stderr)
        return 130
    print(f'{out}/index.html and {out}/report.json')
    return 0 if report['jobs'] and not any(job['failed'] for job in report['jobs']) else 1


if __name__ == '__main__':
    sys.exit(main())
