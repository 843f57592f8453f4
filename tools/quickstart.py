"""The main job on the embedded digits: pre-train dBOT in two stages, fine-tune every stage's student, report.

    bash tools/quickstart.sh [--work-dir DIR] [--draws N] [--cfg-options KEY=VALUE …]

Everything runs through the hosts' own runner, datasets and metric, from configs/dbot/. Written to the work dir:
report.json, curves.png, attention.png, and the stages' checkpoints under pretrain/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import mkd_plugin
from mkd_plugin.datasets import draw_labelled, write_digits
from mkd_plugin.reporting.pictures import plot_attention

# mmpretrain imports an op that it does not need and that is not compiled here
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

STARTS = {'scratch': None, 'teacher0': 'stage_0.pth', 'stage1': 'stage_1.pth', 'stage2': 'stage_2.pth'}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'))
    parser.add_argument('--data-root', type=Path, default=Path('data/digits'))
    parser.add_argument('--labels', type=int, nargs='+', default=[2, 10], help='labelled images a class')
    parser.add_argument('--draws', type=int, default=5, help='label draws, the same for every start')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='changes of the pre-training config'
    )
    parser.add_argument(
        '--ft-options', nargs='+', action=DictAction, default={}, help='changes of the fine-tuning config'
    )
    return parser.parse_args()


def pretrain(args: argparse.Namespace) -> Config:
    """Run dBOT's two stages."""
    cfg = mkd_plugin.get_config('dbot/dbot_digits')
    cfg.work_dir = str(args.work_dir / 'pretrain')
    cfg.train_dataloader.dataset.data_root = str(args.data_root)
    cfg.randomness.seed = args.seed
    cfg.merge_from_dict(args.cfg_options)
    Runner.from_cfg(cfg).train()
    return cfg


def finetune(args: argparse.Namespace, start: str, labels: int, draw: int) -> float:
    """Fine-tune one start on one draw of labels; top-1 accuracy on the validation scans, in per cent."""
    cfg = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    cfg.work_dir = str(args.work_dir / 'finetune' / f'{start}_{labels:02d}_{draw}')
    cfg.log_level, cfg.default_hooks.progress.enabled = 'ERROR', False  # the terminal has one bar for all of them
    cfg.randomness.seed = 1000 + draw  # another than the pre-training's: scratch must not start as teacher 0
    listed = draw_labelled(args.data_root, labels, draw)
    cfg.train_dataloader.dataset.update(data_root=str(args.data_root), ann_file=str(listed.relative_to(args.data_root)))
    cfg.val_dataloader.dataset.data_root = str(args.data_root)
    cfg.merge_from_dict(args.ft_options)
    if STARTS[start]:
        checkpoint = str(args.work_dir / 'pretrain' / STARTS[start])
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    runner = Runner.from_cfg(cfg)
    runner.train()
    return float(runner.message_hub.get_scalar('val/accuracy/top1').current())


def finetune_all(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Every start on every draw, in one process of one thread per core."""
    jobs = [(start, labels, draw) for labels in args.labels for start in STARTS for draw in range(args.draws)]
    accuracies: dict[tuple[str, int], list[float]] = {(start, labels): [] for start, labels, _ in jobs}
    columns = (TextColumn('fine-tuning'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(os.cpu_count(), context, initializer=torch.set_num_threads, initargs=(1,))
    with pool, Progress(*columns, console=console) as progress:
        task = progress.add_task('', total=len(jobs))
        futures = [pool.submit(finetune, args, *job) for job in jobs]
        for number, ((start, labels, draw), future) in enumerate(zip(jobs, futures, strict=True), 1):
            accuracy = future.result()
            accuracies[start, labels].append(accuracy)
            progress.advance(task)
            if not console.is_terminal:  # a log file gets lines, a terminal the bar
                print(
                    f'[{number}/{len(jobs)}] {start}, {labels} labels a class, draw {draw}: {accuracy:.1f}', flush=True
                )
    return [
        dict(
            start=start,
            labels_per_class=labels,
            accuracies=values,
            mean=statistics.mean(values),
            std=statistics.stdev(values) if len(values) > 1 else 0.0,
        )
        for (start, labels), values in accuracies.items()
    ]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table: starts down, labels across."""
    labels = sorted({row['labels_per_class'] for row in rows})
    table = Table('start', *(f'{count} labels a class' for count in labels), title='top-1 on 357 scans, per cent')
    for start in STARTS:
        cells = {
            row['labels_per_class']: f'{row["mean"]:.1f} ± {row["std"]:.1f}' for row in rows if row['start'] == start
        }
        table.add_row(start, *(cells[count] for count in labels))
    console.print(table)


def main() -> None:
    """Run it all."""
    args, console = parse_args(), Console()
    began = time.time()
    write_digits(args.data_root)
    cfg = pretrain(args)
    pretrained = time.time()
    rows = finetune_all(args, console)
    settings = dict(
        seed=args.seed, draws=args.draws, stages=cfg.model.teachers.boot.stages, version=mkd_plugin.__version__
    )
    seconds = dict(pretrain=pretrained - began, finetune=time.time() - pretrained)
    report = dict(rows=rows, settings=settings, seconds=seconds)
    (args.work_dir / 'report.json').write_text(json.dumps(report, indent=2) + '\n')
    shutil.copy2(args.work_dir / 'pretrain' / 'curves.png', args.work_dir / 'curves.png')
    stages = {name: args.work_dir / 'pretrain' / file for name, file in STARTS.items() if file}
    plot_attention(stages, args.data_root / 'val', args.work_dir / 'attention.png')
    show(rows, console)
    console.print(f'{sum(seconds.values()) / 60:.1f} minutes. Report and pictures: {args.work_dir}')


if __name__ == '__main__':
    main()
