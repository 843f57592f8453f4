"""The cells of the experiment: images, method, length and size of a pre-training, and the scores of its frozen student."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import mkd_plugin
from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.evaluation import draw_shots, knn_accuracy
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS
from mkd_plugin.reporting.experiment import Job, JobContext
from mkd_plugin.reporting.store import Store, key_of

SHORT, LONG, LONGER = 500, 2000, 8000  # updates of the whole run; dBOT divides them into two stages
STUDENTS = {'small': dict(width=96, depth=4, num_heads=4), 'big': dict(width=192, depth=6, num_heads=6)}
PERCENT = (1, 10, 100)
NAMES = {'digits': 'Digits', 'fashion': 'Fashion-MNIST'}
IMAGES = {'digits': 1440, 'fashion': 60_000}  # for pre-training
TESTED = {'digits': 357, 'fashion': 10_000}
LABELS = {'digits': None, 'fashion': 1000}  # labels a class that "all" means; None for every training image
FEW, DRAWS = 10, 5  # labels a class, and draws of them
PIXELS = {'digits': ([77.9] * 3, [92.8] * 3), 'fashion': ([72.9], [90.0])}
SCORES = {
    'probe_few': f'linear probe, {FEW} labels a class',
    'knn_few': f'k-NN, {FEW} labels a class',
    'probe_all': 'linear probe, all labels',
    'knn_all': 'k-NN, all labels',
}
DECIDING = 'probe_few'

Labelled = tuple[Tensor, Tensor]  # features (N, D) or normalised images (N, C, H, W), and labels (N,)


@dataclass(frozen=True)
class Cell:
    """A pre-training and its scores."""

    data: str  #: 'digits' or 'fashion'
    percent: int  #: Training images that are used, per cent; 0 for the random network, which sees none
    method: str  #: 'random', 'mae', 'dbot' or 'dmae'
    steps: int  #: Updates of 48 images
    student: str = 'small'  #: Key of ``STUDENTS``
    seed: int = 0  #: Random seed of the pre-training

    def __str__(self) -> str:
        return f'{self.data} {self.percent} % {self.method} {self.steps} {self.student} seed {self.seed}'


def cells() -> list[Cell]:
    """Return all cells, the most telling first: what does not fit into the time is left out at the end."""

    def row(data: str, *shares: int) -> list[Cell]:
        return [Cell(data, share, method, LONG) for share in shares for method in ('mae', 'dbot')]

    def shorter(found: list[Cell]) -> list[Cell]:
        return [replace(cell, steps=SHORT) for cell in found]

    ends, middle = row('fashion', 100, 1), row('fashion', 10)
    digits, digits_middle = row('digits', 100, 1), row('digits', 10)
    mae = [cell for cell in (*ends, *middle) if cell.method == 'mae']
    return [
        *(Cell(data, 0, 'random', 0, seed=seed) for data in NAMES for seed in (0, 1)),
        *(*ends, *shorter(ends), *digits, *shorter(digits)),
        *(*middle, *shorter(middle), *digits_middle, *shorter(digits_middle)),
        *(replace(cell, method='dmae') for cell in mae),
        *(replace(cell, student='big') for cell in mae[:2]),
        *(replace(cell, steps=LONGER) for cell in mae[:2]),
        *(replace(cell, seed=1) for cell in (*ends, *middle)),
    ]


def chosen_images(cell: Cell) -> list[int]:
    """Indices of the images that are pre-trained on: those of 1 per cent are among those of 10."""
    order = np.random.default_rng(0).permutation(IMAGES[cell.data])
    return sorted(order[: IMAGES[cell.data] * cell.percent // 100].tolist())


def dataset_config(data: str, split: str, root: str) -> dict[str, Any]:
    """Return the config of a data set of mmpretrain, with the pipeline of the evaluation."""
    if data == 'fashion':
        pipeline = [dict(type='PackInputs')]
        return dict(type='FashionMNIST', data_root=root, split=split, test_mode=split == 'test', pipeline=pipeline)
    folder = dict(train='train', test='val')[split]
    read = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=24, interpolation='bicubic')]
    return dict(type='CustomDataset', data_root=root, data_prefix=folder, pipeline=[*read, dict(type='PackInputs')])


def config_of(cell: Cell, roots: dict[str, str], teacher: str | None) -> Config:
    """Return the config: that of the method on digits, with our student, images and length."""
    cfg = mkd_plugin.get_config(f'{cell.method}/{cell.method}_digits')
    arch, (mean, std) = STUDENTS[cell.student], PIXELS[cell.data]
    cfg.model.backbone.arch = arch
    train = cfg.train_dataloader
    if cell.data == 'fashion':
        cfg.model.backbone.update(img_size=28, in_channels=1)
        cfg.data_preprocessor = dict(type='SelfSupDataPreprocessor', mean=mean, std=std)
        crop = dict(train.dataset.pipeline[1], scale=28)
        train.dataset = dict(dataset_config('fashion', 'train', ''), pipeline=[crop, dict(type='PackInputs')])
    train.dataset.update(data_root=roots[cell.data], indices=chosen_images(cell))
    train.sampler = dict(type='InfiniteSampler', shuffle=True)
    if teacher is not None:
        cfg.model.teachers.mae.update(arch=arch, checkpoint=teacher, seed=None, pixel_mean=mean, pixel_std=std)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=cell.steps)
    warm_up = max(1, cell.steps // 10)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warm_up),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up, end=cell.steps),
    ]
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=SHORT)
    cfg.log_processor, cfg.log_level = dict(by_epoch=False), 'ERROR'
    cfg.default_hooks.progress.enabled = False
    cfg.randomness.seed = cell.seed
    return cfg


def teacher_of(cell: Cell) -> Cell | None:
    """Return DMAE's teacher: MAE of the same images, length, size and seed."""
    return replace(cell, method='mae') if cell.method == 'dmae' else None


@lru_cache
def read_split(data: str, split: str, root: str) -> Labelled:
    """Read normalised images and labels; of the training images only those whose labels are used."""
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(dataset_config(data, split, root))
    labels_N = torch.from_numpy(np.asarray(dataset.get_gt_labels()))
    shots = LABELS[data] if split == 'train' else None
    rows = torch.arange(len(labels_N)) if shots is None else draw_shots(labels_N, shots, 0)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in PIXELS[data])
    images_NCHW = torch.stack([dataset[row]['inputs'] for row in rows.tolist()]).float()
    return (images_NCHW - mean) / std, labels_N[rows]


@torch.no_grad()
def features(network: VisionTransformer, images: Labelled) -> Labelled:
    """Average the last block's patch tokens, (N, D)."""
    tap = 'block:-1'
    parts = [network(batch, taps=(tap,)).tokens(tap)[:, network.num_prefix :].mean(1) for batch in images[0].split(250)]
    return torch.cat(parts), images[1]


def scores_of(train: Labelled, test: Labelled) -> dict[str, list[float]]:
    """Return top-1 on the test images in per cent, one number per draw of labels."""
    draws = [draw_shots(train[1], FEW, draw) for draw in range(DRAWS)]
    few = [(train[0][rows], train[1][rows]) for rows in draws]
    return {
        'probe_few': [probe(part, test) for part in few],
        'knn_few': [knn_accuracy(*part, *test, ks=[10])[10] for part in few],
        'probe_all': [probe(train, test)],
        'knn_all': [knn_accuracy(*train, *test, ks=[20])[20]],
    }


def probe(train: Labelled, test: Labelled) -> float:
    """Train logistic regression on standardised channels to its optimum; nothing is chosen on the test images."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(train[0].numpy(), train[1].numpy())
    return 100 * float(model.score(test[0].numpy(), test[1].numpy()))


def run_cell(cell: Cell, roots: dict[str, str], teacher: str | None, context: JobContext) -> dict[str, list[float]]:
    """Pre-train, resuming an interrupted run, and measure the frozen student."""
    source = replace(cell, method='mae', percent=100, steps=LONG) if cell.method == 'random' else cell
    cfg = config_of(source, roots, teacher)
    cfg.work_dir, cfg.resume, cfg.experiment_name = str(context.work_dir), True, context.work_dir.name
    runner = Runner.from_cfg(cfg)  # sets the seed
    network = MODELS.build(cfg.model.backbone)
    network.init_weights()
    if cell.method != 'random':
        runner.train()
        load_backbone(network, context.work_dir / f'iter_{cell.steps}.pth')
    network.eval()
    parts = (features(network, read_split(cell.data, split, roots[cell.data])) for split in ('train', 'test'))
    return scores_of(*parts)


def jobs_of(wanted: list[Cell], roots: dict[str, str], store: Store) -> dict[Cell, Job]:
    """Return the cells as jobs; a key covers the config, and that of the teacher."""
    keys: dict[Cell, str] = {}
    jobs = {}
    for cell in wanted:
        earlier = teacher_of(cell)
        depends = () if earlier is None else (keys[earlier],)
        teacher = None if earlier is None else str(store.work_dir(keys[earlier]) / f'iter_{cell.steps}.pth')
        config = {} if cell.method == 'random' else config_of(cell, dict.fromkeys(roots, ''), None).to_dict()
        keys[cell] = key_of(str(cell), config=config, cell=asdict(cell), depends=depends, labels=[LABELS, FEW, DRAWS])
        jobs[cell] = Job(
            str(cell), keys[cell], partial(run_cell, cell, roots, teacher), depends, cost=cell.steps + SHORT
        )
    return jobs
