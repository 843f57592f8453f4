"""Pre-train dBOT in two stages on the embedded digits, fine-tune each stage's student, and write a report.

    bash tools/quickstart.sh [--full] [--work-dir DIR] [--draws N] [--cfg-options KEY=VALUE …]

Everything is trained by mmengine's runner from the configs below configs/dbot/. The work folder gets first.png within two
minutes, and at the end report.json, curves.png, attention.png and pretrain/ with a checkpoint of each stage. Rerun the command
to resume it: finished jobs are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mkd_plugin
from mkd_cli.command import at_least, run_resumable
from mkd_plugin.datasets import draw_labelled, write_digits
from mkd_plugin.interop.student import LoadedStudent, load_student
from mkd_plugin.models.masking.guided import attention_of_cls
from mkd_plugin.reporting.experiment import Job, JobContext, run_jobs
from mkd_plugin.reporting.store import Record, Store, key_of
from mkd_plugin.structures import QueryKey
from mkd_plugin.utils.files import write_whole

# mmpretrain imports an op that is not compiled here and that nothing needs
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

STARTS = {'scratch': None, 'teacher0': 'stage_0.pth', 'stage1': 'stage_1.pth', 'stage2': 'stage_2.pth'}
COLUMNS = 8  # of the pictures
EPOCHS, STEPS = 70, 200  # of both stages of pre-training, and of each fine-tuning; without --full


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        '--full',
        action='store_true',
        help='100 epochs a stage, not 35; 400 steps of fine-tuning, not 200; five draws, and from scratch too',
    )
    add('--work-dir', type=Path, default=Path('work_dirs/quickstart'), help='output folder (default: %(default)s)')
    add('--data-root', type=Path, default=Path('data/digits'), help='written if missing (default: %(default)s)')
    add('--labels', type=int, nargs='+', default=[2, 10], help='labelled images per class (default: 2 10)')
    add('--draws', type=at_least(1), help='draws of labels, the same for every start (default: 4, with --full 5)')
    add('--seed', type=int, default=0, help='random seed of the pre-training (default: %(default)s)')
    add('--cfg-options', nargs='+', action=DictAction, default={}, help='changed options of the pre-training config')
    add('--ft-options', nargs='+', action=DictAction, default={}, help='changed options of the fine-tuning config')
    args = parser.parse_args()
    args.draws = args.draws or (5 if args.full else 4)
    return args


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning.

    Attributes:
        start: Name in ``STARTS``.
        labels: Labelled images per class.
        draw: Draw of these labels.
    """

    start: str
    labels: int
    draw: int

    def __str__(self) -> str:
        return f'{self.start}, {self.labels} labels per class, draw {self.draw}'


def pretrain_config(args: argparse.Namespace) -> Config:
    """Return the config of dBOT's two stages, without paths."""
    cfg = mkd_plugin.get_config('dbot/dbot_digits')
    cfg.randomness.seed = args.seed
    if not args.full:
        cfg.train_cfg.max_epochs = EPOCHS
    cfg.merge_from_dict(args.cfg_options)
    return cfg


def pretrain(args: argparse.Namespace, context: JobContext) -> None:
    """Run dBOT's two stages, from the last checkpoint if the run was interrupted."""
    cfg = pretrain_config(args)
    cfg.work_dir, cfg.resume = str(context.work_dir), True
    cfg.train_dataloader.dataset.data_root = str(args.data_root)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(FirstPicture(args.data_root / 'val', args.work_dir / 'first.png'), 'LOWEST')
    runner.train()


class FirstPicture(Hook):
    """Draw the attention of the random teacher and of student 1 as soon as the student has its first checkpoint.

    Args:
        images: Folder with one sub-folder per class.
        out: The picture.
    """

    def __init__(self, images: Path, out: Path) -> None:
        self.images, self.out, self.drawn = images, out, False

    def after_train_epoch(self, runner: Runner) -> None:
        """Draw once there is a checkpoint; a thread writes it during the next epoch."""
        student = next(Path(runner.work_dir).glob('epoch_*.pth'), None)
        if student is None or self.drawn:
            return
        networks = {'teacher0': student.with_name('stage_0.pth'), student.stem.replace('_', ' '): student}
        with torch.random.fork_rng(devices=[]):  # building a network draws numbers, and the run's must stay the same
            plot_attention(networks, self.images, self.out)
        self.drawn = True
        runner.logger.info(f'The first picture is in {self.out}.')

    def after_run(self, runner: Runner) -> None:
        """Draw after a run so short that its only checkpoint was written at its end."""
        self.after_train_epoch(runner)


def starts_of(args: argparse.Namespace) -> list[str]:
    """Return the names of the starts to fine-tune. Teacher 0 is a random network too, so only --full trains from scratch."""
    return [start for start in STARTS if args.full or start != 'scratch']


def finetune_config(args: argparse.Namespace, run: FineTuning) -> Config:
    """Return the config of a fine-tuning, without paths."""
    cfg = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    cfg.log_level = 'ERROR'
    for hook in ('progress', 'curves'):  # one progress bar shows all runs, and nobody looks at forty pictures
        del cfg.default_hooks[hook]
    cfg.visualizer.vis_backends = None
    cfg.randomness.seed = 1000 + run.draw  # different from the pre-training's, so that scratch does not equal teacher 0
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.serialize_data = False  # collects garbage for most of a second, to save memory
    if not args.full:
        cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = cfg.param_scheduler[1].end = STEPS
    cfg.merge_from_dict(args.ft_options)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    return cfg


def finetune(args: argparse.Namespace, run: FineTuning, pretrained: Path, context: JobContext) -> float:
    """Fine-tune; return the top-1 accuracy on the validation scans in per cent."""
    cfg = finetune_config(args, run)
    cfg.work_dir, cfg.resume = str(context.work_dir), True  # an interrupted one is run again in its folder
    annotation = draw_labelled(args.data_root, run.labels, run.draw)
    cfg.train_dataloader.dataset.update(
        data_root=str(args.data_root), ann_file=str(annotation.relative_to(args.data_root))
    )
    cfg.val_dataloader.dataset.data_root = str(args.data_root)
    if file := STARTS[run.start]:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(pretrained / file), prefix='backbone.')
    runner = Runner.from_cfg(cfg)
    runner.train()
    return float(runner.message_hub.get_scalar('val/accuracy/top1').current())


def run_pretraining(args: argparse.Namespace, store: Store) -> tuple[str, Record]:
    """Pre-train, unless it is done already; return the key of the job and its record."""
    key = key_of('pretrain', version=mkd_plugin.__version__, config=pretrain_config(args).to_dict())
    job = Job('pre-training', key, partial(pretrain, args))
    outcome = run_jobs([job], store, console=Console(quiet=True))  # mmengine shows the progress
    if key in outcome.failures:
        raise ValueError(f'The pre-training failed: {outcome.failures[key]}')
    shutil.copytree(store.work_dir(key), args.work_dir / 'pretrain', dirs_exist_ok=True)
    return key, outcome.records[key]


def run_finetunings(
    args: argparse.Namespace, store: Store, pretrained: str, console: Console
) -> dict[FineTuning, Record]:
    """Fine-tune every start on every draw, in one process per core."""
    jobs = {}
    for labels in args.labels:
        for run in (FineTuning(start, labels, draw) for start in starts_of(args) for draw in range(args.draws)):
            config = finetune_config(args, run).to_dict()
            content = dict(config=config, labels=labels, draw=run.draw, start=run.start, pretrained=pretrained)
            key = key_of(f'{run.start}_{labels:02d}_{run.draw}', version=mkd_plugin.__version__, **content)
            jobs[run] = Job(str(run), key, partial(finetune, args, run, store.work_dir(pretrained)))
    outcome = run_jobs(
        list(jobs.values()),
        store,
        console=console,
        workers=os.cpu_count() or 1,
        backend='processes',
        describe=lambda record: f'{record.value:.1f} %',
    )
    if outcome.failures:
        raise ValueError(f'{len(outcome.failures)} fine-tunings failed. Rerun the command to repeat them.')
    return {run: outcome.records[job.key] for run, job in jobs.items()}


def summarize(args: argparse.Namespace, records: dict[FineTuning, Record]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over the draws for each start and number of labels."""
    rows = []
    for labels in args.labels:
        for start in starts_of(args):
            values = [records[FineTuning(start, labels, draw)].value for draw in range(args.draws)]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row = dict(start=start, labels_per_class=labels, accuracies=values)
            rows.append(dict(**row, mean=statistics.mean(values), std=spread))
    return rows


def result_table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of accuracies, one line per start."""
    labels = sorted({row['labels_per_class'] for row in rows})
    cells = {(row['start'], row['labels_per_class']): f'{row["mean"]:.1f} ± {row["std"]:.1f}' for row in rows}
    table = Table('start', *(f'{count} labels per class' for count in labels), title='top-1 on 357 scans, per cent')
    for start in dict.fromkeys(row['start'] for row in rows):
        table.add_row(start, *(cells[start, count] for count in labels))
    return table


@torch.no_grad()
def attention_map_of_cls(student: LoadedStudent, images_BCHW: Tensor) -> Tensor:
    """Attention of the cls token in the last block, mean over heads, (B, rows, columns). Images are RGB in [0, 1]."""
    backbone = student.backbone
    logits = backbone(student.normalise(images_BCHW), taps=('logit:-1',)).taps['logit:-1']
    assert isinstance(logits, QueryKey)
    return attention_of_cls(logits, backbone.num_prefix).view(-1, *backbone.grid)


def plot_attention(checkpoints: Mapping[str, Path], folder: Path, out: Path) -> None:
    """Draw, for one image of each of the first classes: input, a random 75 % masked input, and each network's attention.

    ``folder`` has one sub-folder per class; ``checkpoints`` has the names of the rows.
    """
    students = {name: load_student(path) for name, path in checkpoints.items()}
    backbone = next(iter(students.values())).backbone
    files = [sorted(kind.glob('*.png'))[0] for kind in sorted(folder.iterdir())[:COLUMNS]]
    size = backbone.image_hw[::-1]
    pictures = [np.asarray(Image.open(file).convert('RGB').resize(size, Image.Resampling.BICUBIC)) for file in files]
    images_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    length, patch = backbone.grid[0] * backbone.grid[1], backbone.patch_size
    order = np.random.default_rng(0).random((len(files), length)).argsort(axis=1)
    hidden = (order >= length // 4).reshape(-1, *backbone.grid).repeat(patch, 1).repeat(patch, 2)
    rows = {'input': images_BCHW.permute(0, 2, 3, 1).numpy()}
    rows['masked'] = np.where(hidden[..., None], 0.5, rows['input'])
    rows.update({name: attention_map_of_cls(student, images_BCHW).numpy() for name, student in students.items()})
    figure = Figure(figsize=(len(files), len(rows) + 0.2), layout='constrained')
    for line, (name, row) in zip(figure.subplots(len(rows), len(files)), rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize='small')
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture, cmap=None if picture.ndim == 3 else 'magma')
            axis.set(xticks=[], yticks=[])
    figure.savefig(out, dpi=120)


def main() -> int:
    """Pre-train, fine-tune and report; return the exit code."""
    args, console = parse_args(), Console()
    began = time.monotonic()
    args.data_root = write_digits(args.data_root).resolve()
    try:
        store = Store(args.work_dir / 'jobs')
        key, pretrained = run_pretraining(args, store)
        records = run_finetunings(args, store, key, console)
    except ValueError as error:
        console.print(str(error), style='bold red', markup=False)
        return 1
    rows = summarize(args, records)
    stages = pretrain_config(args).model.teachers.boot.stages
    settings = dict(seed=args.seed, draws=args.draws, stages=stages, version=mkd_plugin.__version__)
    seconds = dict(pretrain=pretrained.seconds, finetune=sum(record.seconds for record in records.values()))
    write_whole(
        args.work_dir / 'report.json', json.dumps(dict(rows=rows, settings=settings, seconds=seconds), indent=2) + '\n'
    )
    shutil.copy2(args.work_dir / 'pretrain' / 'curves.png', args.work_dir / 'curves.png')
    checkpoints = {name: args.work_dir / 'pretrain' / file for name, file in STARTS.items() if file}
    plot_attention(checkpoints, args.data_root / 'val', args.work_dir / 'attention.png')
    console.print(result_table(rows))
    console.print(f'{(time.monotonic() - began) / 60:.1f} minutes. Report and figures: {args.work_dir}')
    return 0


if __name__ == '__main__':
    sys.exit(run_resumable(main))
