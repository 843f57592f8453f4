"""The pre-trainings of the experiment: shipped configs with changed options.

A *network* is a checkpoint written by a pre-training. The names of dBOT's networks end in the stage: `mae-0` is the MAE
teacher, `mae-1` and `mae-2` are the students of the dBOT stages that start from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmengine.config import Config

import mkd_plugin
from projects.paper_claims.settings import Settings

Checkpoint = Callable[[str], str]  # name of a network → path of its file
Options = dict[str, Any]

INITS = ('random', 'mae', 'supervised', 'contrastive')  # initialisations of dBOT's teacher 0
PIXELS = dict(pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)


@dataclass(frozen=True)
class Recipe:
    """A pre-training.

    Attributes:
        base: Shipped config.
        networks: Name → file in the work folder; `{epochs}` and `{steps}` stand for the length of the run.
        options: Changed options of the config, given the settings and the paths of other networks.
        teachers: Networks that it needs.
        lengths: Length in units of `settings.epochs`.
    """

    base: str
    networks: Mapping[str, str]
    options: Callable[[Settings, Checkpoint], Options]
    teachers: tuple[str, ...] = ()
    lengths: int = 1

    def file(self, network: str, settings: Settings) -> str:
        """Return the name of a network's checkpoint in the work folder."""
        epochs = self.lengths * settings.epochs
        return self.networks[network].format(epochs=epochs, steps=epochs * settings.steps_per_epoch)


def schedule(epochs: int, unit: int = 1) -> Options:
    """Warm up for a tenth of the run, then decay by a cosine; ``unit`` is 1 for epochs, or the steps per epoch."""
    warm_up, end = max(1, epochs // 10) * unit, epochs * unit
    return {'param_scheduler.0.end': warm_up, 'param_scheduler.1.begin': warm_up, 'param_scheduler.1.end': end}


def pretraining(settings: Settings, epochs: int) -> Options:
    """Return the options of every pre-training that is counted in epochs."""
    return {
        'optim_wrapper.optimizer': dict(lr=settings.lr, fused=True),
        'train_dataloader.batch_size': settings.batch,
        'train_dataloader.dataset.indices': settings.images,
        'train_cfg.max_epochs': epochs,
        'default_hooks.checkpoint.interval': max(1, epochs // 4),
        **schedule(epochs),
    }


def distiller(settings: Settings, epochs: int, decoder: str | None = None) -> Options:
    """Return the options of every MaskedDistiller; ``decoder`` names the objective that has one."""
    options = {**pretraining(settings, epochs), 'model.backbone.arch': settings.arch}
    if decoder is not None:
        options[f'model.objectives.{decoder}.head'] = dict(depth=1, width=settings.decoder_width, num_heads=3)
    return options


def vit_teacher(settings: Settings, checkpoint: str) -> Options:
    """Return the config of a frozen teacher loaded from a file."""
    return dict(type='ViTTeacher', arch=settings.arch, patch_size=4, checkpoint=checkpoint, seed=None, **PIXELS)


def dbot(init: str, *, name: str | None = None, stages: int = 2, more: Options | None = None) -> Recipe:
    """Return dBOT in stages of equal length."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        changes = distiller(settings, stages * settings.epochs, decoder='feature') | schedule(settings.epochs)
        changes['model.teachers.boot.stages'] = stages
        if init != 'random':
            start = vit_teacher(settings, checkpoint(f'{init}-0'))
            changes['model.teachers.boot.start'] = dict(_delete_=True, **start)
        return {**changes, **(more or {})}

    networks = {f'{name or init}-{stage}': f'stage_{stage}.pth' for stage in range(1, stages + 1)}
    if init == 'random' and name is None:
        networks = {'random-0': 'stage_0.pth', **networks}
    needed = () if init == 'random' else (f'{init}-0',)
    return Recipe('dbot/dbot_digits', networks, options, needed, lengths=stages)


def mae(name: str, *, normalised: bool = True) -> Recipe:
    """Return MAE on normalised or raw pixels."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        changes = distiller(settings, settings.epochs, decoder='pixel')
        return changes if normalised else {**changes, 'model.objectives.pixel.normalize': None}

    return Recipe('mae/mae_digits', {name: 'epoch_{epochs}.pth'}, options)


def dmae(ratio: float) -> Recipe:
    """Return DMAE from the MAE teacher, with raw pixels as in the shipped config."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        return {
            **distiller(settings, settings.epochs, decoder='pixel'),
            'model.masking.ratio': ratio,
            'model.teachers.mae': vit_teacher(settings, checkpoint('mae-0')),
        }

    return Recipe('dmae/dmae_digits', {f'dmae-{ratio:.2f}': 'epoch_{epochs}.pth'}, options, ('mae-0',))


def hybrid(alpha: float) -> Recipe:
    """Return Hybrid Distill: features of the supervised teacher, relations of the MAE teacher."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        return {
            **distiller(settings, settings.epochs),
            'model.teachers.mim': vit_teacher(settings, checkpoint('mae-0')),
            'model.teachers.semantic': vit_teacher(settings, checkpoint('supervised-0')),
            'model.objectives.relation.weight': alpha,
        }

    networks = {f'hybrid-alpha{alpha:.0f}': 'epoch_{epochs}.pth'}
    return Recipe('hybrid_distill/hybrid_digits', networks, options, ('mae-0', 'supervised-0'))


def host_vit(settings: Settings) -> Options:
    """Return the same ViT as mmpretrain's own, read at its cls token, in a format that ViTTeacher loads."""
    arch = dict(embed_dims=settings.width, num_layers=4, num_heads=3, feedforward_channels=4 * settings.width)
    return dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=24, patch_size=4, out_type='cls_token')


def supervised_options(settings: Settings, checkpoint: Checkpoint) -> Options:
    """Return the options of mmpretrain's classifier, trained on all labels."""
    steps = settings.epochs * settings.steps_per_epoch
    return {
        'model.backbone': dict(_delete_=True, **host_vit(settings)),
        'model.head.in_channels': settings.width,
        'optim_wrapper.optimizer': dict(lr=settings.lr, fused=True),
        'optim_wrapper.paramwise_cfg.layer_decay_rate': 1.0,
        'train_dataloader.batch_size': settings.batch,
        'train_dataloader.dataset.ann_file': '',
        'train_cfg': dict(max_iters=steps, val_interval=steps),
        'default_hooks.checkpoint': dict(by_epoch=False, interval=max(1, steps // 4), save_last=True),
        **schedule(settings.epochs, settings.steps_per_epoch),
    }


def contrastive_options(settings: Settings, checkpoint: Checkpoint) -> Options:
    """Return the options of mmpretrain's SimCLR, without flips and with small rotations, to suit digits."""
    crop = dict(type='RandomResizedCrop', scale=24, crop_ratio_range=(0.4, 1.0), interpolation='bicubic')
    views = [
        crop,
        dict(type='Rotate', magnitude_range=(0, 15), magnitude_level=10, magnitude_std='inf', pad_val=0, prob=0.8),
        dict(type='ColorJitter', brightness=0.4, contrast=0.4),
    ]
    width = settings.width
    return {
        **pretraining(settings, settings.epochs),
        'model': dict(
            _delete_=True,
            type='SimCLR',
            backbone=host_vit(settings),
            neck=dict(
                type='NonLinearNeck',
                in_channels=width,
                hid_channels=4 * width,
                out_channels=width,
                with_avg_pool=False,
                norm_cfg=dict(type='BN1d'),
            ),
            head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2),
        ),
        'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='MultiView', num_views=[2], transforms=[views]),
            dict(type='PackInputs'),
        ],
    }


RAW: Options = {'model.objectives.feature.normalize': None}
KEPT: Options = {'model.teachers.boot.reset_student': False}

RECIPES: dict[str, Recipe] = {
    'mae': mae('mae-0'),
    'mae-raw': mae('mae-raw', normalised=False),
    'supervised-teacher': Recipe(
        'dbot/finetune/digits/dbot-ft_digits', {'supervised-0': 'iter_{steps}.pth'}, supervised_options
    ),
    'contrastive-teacher': Recipe('mae/mae_digits', {'contrastive-0': 'epoch_{epochs}.pth'}, contrastive_options),
    **{f'dbot-{init}': dbot(init) for init in INITS},
    'dbot-kept': dbot('random', name='kept', more=KEPT),
    'dbot-raw-contrastive': dbot('contrastive', name='raw-contrastive', stages=1, more=RAW),
    'dmae-0.75': dmae(0.75),
    'dmae-0.90': dmae(0.90),
    'hybrid-0': hybrid(0.0),
    'hybrid-1': hybrid(1.0),
}


def recipe_of(network: str) -> str:
    """Return the name of the pre-training that writes a network.

    Raises:
        ValueError: There is no such network.
    """
    for name, recipe in RECIPES.items():
        if network in recipe.networks:
            return name
    known = sorted(found for recipe in RECIPES.values() for found in recipe.networks)
    raise ValueError(f'There is no network {network!r}. Networks are {known}.')


@lru_cache
def read_shipped(name: str) -> Config:
    """Read a shipped config, once for all of the many jobs that use it."""
    return mkd_plugin.get_config(name)


def shipped(name: str) -> Config:
    """Return a copy of a shipped config."""
    return copy.deepcopy(read_shipped(name))


def pretrain_config(name: str, settings: Settings, checkpoint: Checkpoint) -> Config:
    """Return the config of a pre-training, without seed and paths."""
    recipe = RECIPES[name]
    cfg = shipped(recipe.base)
    cfg.merge_from_dict(recipe.options(settings, checkpoint))
    return without_overhead(cfg)


def finetune_config(settings: Settings, checkpoint: str) -> Config:
    """Return the config of a fine-tuning on few labels, without seed, labels and paths."""
    cfg = shipped('dbot/finetune/digits/dbot-ft_digits')
    steps = settings.finetune_steps
    warm_up = max(1, steps // 10)
    cfg.merge_from_dict(
        {
            'model.backbone': dict(arch=settings.arch, drop_path_rate=0.0),
            'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'),
            'model.head.in_channels': settings.width,
            'optim_wrapper.optimizer': dict(lr=settings.finetune_lr, fused=True),
            'train_dataloader.batch_size': settings.finetune_batch,
            'train_cfg': dict(max_iters=steps, val_interval=steps),
            'param_scheduler.0.end': warm_up,
            'param_scheduler.1': dict(begin=warm_up, end=steps),
        }
    )
    return without_overhead(cfg)


def without_overhead(cfg: Config) -> Config:
    """Turn off what costs time here: packing the few entries of a data set, and a test besides the validation."""
    for loader in ('train_dataloader', 'val_dataloader'):
        if cfg.get(loader):
            cfg[loader].dataset.serialize_data = False
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    return cfg
