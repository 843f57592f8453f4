"""The parts of an experiment's pre-trainings: shipped configs with changed options.

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
from projects.paper_claims.data import FINETUNING, Images
from projects.paper_claims.settings import Settings

Checkpoint = Callable[[str], str]  # name of a network → path of its file
Options = dict[str, Any]

INITS = ('random', 'mae', 'supervised', 'contrastive')  # initialisations of dBOT's teacher 0
PIXELS = dict(pixel_mean=[77.9] * 3, pixel_std=[92.8] * 3)
RAW: Options = {'model.objectives.feature.normalize': None}
KEPT: Options = {'model.teachers.boot.reset_student': False}


@dataclass(frozen=True)
class Recipe:
    """A pre-training.

    Attributes:
        base: Shipped config.
        networks: Name → file in the work folder; `{last}` stands for the last checkpoint, `{steps}` for the number of steps.
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
        last = f'{"epoch" if settings.by_epoch else "iter"}_{settings.end(self.lengths)}'
        return self.networks[network].format(last=last, steps=settings.steps(self.lengths))


def schedule(end: int, by_epoch: bool = True) -> list[Options]:
    """Warm up for a tenth of the run, then decay by a cosine."""
    warm_up, convert = max(1, end // 10), dict(by_epoch=by_epoch, convert_to_iter_based=by_epoch)
    return [
        dict(type='LinearLR', start_factor=1e-6, begin=0, end=warm_up, **convert),
        dict(type='CosineAnnealingLR', begin=warm_up, end=end, **convert),
    ]


def loop(settings: Settings, lengths: int) -> Options:
    """Return the options of the length of a run: the loop, and what counts in its unit."""
    end = settings.end(lengths)
    changes: Options = {'default_hooks.checkpoint.interval': max(1, end // 4)}
    if settings.by_epoch:
        return changes | {'train_cfg.max_epochs': end}
    return changes | {
        'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=end),
        'train_dataloader.sampler': dict(_delete_=True, type='InfiniteSampler', shuffle=True),
        'default_hooks.checkpoint.by_epoch': False,
        'log_processor': dict(by_epoch=False),
    }


def pretraining(settings: Settings, lengths: int = 1, stages: int = 1) -> Options:
    """Return the options of every pre-training but the supervised one; a schedule is that of one stage."""
    return {
        'optim_wrapper.optimizer': dict(lr=settings.lr, fused=True),
        'train_dataloader.batch_size': settings.batch,
        'train_dataloader.dataset.indices': settings.images,
        'param_scheduler': schedule(settings.end(lengths) // stages, settings.by_epoch),
        **loop(settings, lengths),
    }


def distiller(settings: Settings, decoder: str | None = None, lengths: int = 1, stages: int = 1) -> Options:
    """Return the options of every MaskedDistiller; ``decoder`` names the objective that has one."""
    options = {
        **pretraining(settings, lengths, stages),
        'model.backbone.arch': settings.arch,
        'model.backbone.patch_size': settings.patch,
    }
    if decoder is not None:
        heads = dict(depth=1, width=settings.decoder_width, num_heads=settings.num_heads)
        options[f'model.objectives.{decoder}.head'] = heads
    return options


def vit_teacher(settings: Settings, checkpoint: str, *, large: bool = False) -> Options:
    """Return the config of a frozen teacher loaded from a file."""
    arch = settings.large if large else settings.arch
    return dict(type='ViTTeacher', arch=arch, patch_size=settings.patch, checkpoint=checkpoint, seed=None, **PIXELS)


def dbot(
    init: str, *, name: str | None = None, stages: int = 2, lengths: int | None = None, more: Options | None = None
) -> Recipe:
    """Return dBOT in stages of equal length, of one unit each unless ``lengths`` says how many there are in all."""
    units = lengths or stages

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        changes = distiller(settings, 'feature', units, stages)
        changes['model.teachers.boot.stages'] = stages
        if init != 'random':
            start = vit_teacher(settings, checkpoint(f'{init}-0'))
            changes['model.teachers.boot.start'] = dict(_delete_=True, **start)
        return {**changes, **(more or {})}

    networks = {f'{name or init}-{stage}': f'stage_{stage}.pth' for stage in range(1, stages + 1)}
    if init == 'random' and name is None:
        networks = {'random-0': 'stage_0.pth', **networks}
    needed = () if init == 'random' else (f'{init}-0',)
    return Recipe('dbot/dbot_digits', networks, options, needed, lengths=units)


def momentum(lengths: int) -> Recipe:
    """Return dBOT with a momentum teacher instead of stages, its row "momentum-cosine-0.996"."""
    ramp = dict(type='CosineRamp', start=0.996, end=1.0)

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        teacher = dict(_delete_=True, type='MomentumTeacher', momentum=ramp)
        return {**distiller(settings, 'feature', lengths), 'model.teachers.boot': teacher}

    return Recipe('dbot/dbot_digits', {'momentum': '{last}.pth'}, options, lengths=lengths)


def mae(name: str, *, normalised: bool = True, large: bool = False) -> Recipe:
    """Return MAE on normalised or raw pixels; a large one is a teacher only."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        changes = distiller(settings, 'pixel')
        if large:
            changes['model.backbone.arch'] = settings.large
        return changes if normalised else {**changes, 'model.objectives.pixel.normalize': None}

    return Recipe('mae/mae_digits', {name: '{last}.pth'}, options)


def dmae(ratio: float, teacher: str = 'mae-0', *, large: bool = False) -> Recipe:
    """Return DMAE from an MAE teacher, with raw pixels as in the shipped config."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        return {
            **distiller(settings, 'pixel'),
            'model.masking.ratio': ratio,
            'model.teachers.mae': vit_teacher(settings, checkpoint(teacher), large=large),
        }

    return Recipe('dmae/dmae_digits', {f'dmae-{ratio:.2f}': '{last}.pth'}, options, (teacher,))


def hybrid(alpha: float, *, name: str | None = None, features: str = 'supervised-0') -> Recipe:
    """Return Hybrid Distill: features of one teacher, relations of the MAE teacher."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        return {
            **distiller(settings),
            'model.teachers.mim': vit_teacher(settings, checkpoint('mae-0')),
            'model.teachers.semantic': vit_teacher(settings, checkpoint(features)),
            'model.objectives.relation.weight': alpha,
        }

    networks = {name or f'hybrid-alpha{alpha:.0f}': '{last}.pth'}
    return Recipe('hybrid_distill/hybrid_digits', networks, options, tuple(dict.fromkeys(('mae-0', features))))


def maskdistill(
    name: str, teacher: str, *, normalised: bool = True, masked: bool = True, large: bool = False
) -> Recipe:
    """Return MaskDistill, or FD if nothing is masked, with the positions of the other students."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        changes = {
            **distiller(settings),
            'model.backbone': dict(
                position='sincos',
                relative_position=None,
                layer_scale=None,
                arch=settings.arch,
                patch_size=settings.patch,
            ),
            'model.teachers.teacher': vit_teacher(settings, checkpoint(teacher), large=large),
        }
        if not masked:
            changes['model.backbone']['type'] = 'PlainViT'
            changes |= {
                'model.masking': dict(_delete_=True, type='NoMasking'),
                'model.objectives.feature.region': 'all+cls',
            }
        return changes if normalised else {**changes, **RAW}

    return Recipe('maskdistill/maskdistill_digits', {name: '{last}.pth'}, options, (teacher,))


def host_vit(settings: Settings) -> Options:
    """Return the same ViT as mmpretrain's own, read at its cls token, in a format that ViTTeacher loads."""
    arch = dict(
        embed_dims=settings.width, num_layers=4, num_heads=settings.num_heads, feedforward_channels=4 * settings.width
    )
    return dict(
        type='mmpretrain.VisionTransformer', arch=arch, img_size=24, patch_size=settings.patch, out_type='cls_token'
    )


def supervised_options(settings: Settings, checkpoint: Checkpoint) -> Options:
    """Return the options of mmpretrain's classifier, trained on all labels."""
    steps = settings.steps()
    return {
        'model.backbone': dict(_delete_=True, **host_vit(settings)),
        'model.head.in_channels': settings.width,
        'optim_wrapper.optimizer': dict(lr=settings.lr, fused=True),
        'optim_wrapper.paramwise_cfg.layer_decay_rate': 1.0,
        'train_dataloader.batch_size': settings.batch,
        'train_dataloader.dataset.ann_file': '',
        'train_cfg': dict(max_iters=steps, val_interval=steps),
        'default_hooks.checkpoint': dict(by_epoch=False, interval=max(1, steps // 4), save_last=True),
        'param_scheduler': schedule(steps, by_epoch=False),
    }


# Views of a contrastive method. Digits are not mirrored, but turned a little.
ROTATION = dict(type='Rotate', magnitude_range=(0, 15), magnitude_level=10, magnitude_std='inf', pad_val=0, prob=0.8)
DIGIT_VIEWS = [ROTATION, dict(type='ColorJitter', brightness=0.4, contrast=0.4)]
GREY_VIEWS = [dict(type='ColorJitter', brightness=0.4, backend='cv2')]


def contrastive(views: list[Options]) -> Recipe:
    """Return mmpretrain's SimCLR with a crop and these transforms."""

    def options(settings: Settings, checkpoint: Checkpoint) -> Options:
        crop = dict(type='RandomResizedCrop', scale=24, crop_ratio_range=(0.4, 1.0), interpolation='bicubic')
        width = settings.width
        neck = dict(
            type='NonLinearNeck',
            in_channels=width,
            hid_channels=4 * width,
            out_channels=width,
            with_avg_pool=False,
            norm_cfg=dict(type='BN1d'),
        )
        head = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2)
        return {
            **pretraining(settings),
            'model': dict(_delete_=True, type='SimCLR', backbone=host_vit(settings), neck=neck, head=head),
            'train_dataloader.dataset.pipeline': [
                dict(type='LoadImageFromFile'),
                dict(type='MultiView', num_views=[2], transforms=[[crop, *views]]),
                dict(type='PackInputs'),
            ],
        }

    return Recipe('mae/mae_digits', {'contrastive-0': '{last}.pth'}, options)


SUPERVISED = Recipe(FINETUNING, {'supervised-0': 'iter_{steps}.pth'}, supervised_options)


@lru_cache
def read_shipped(name: str) -> Config:
    """Read a shipped config, once for all of the many jobs that use it."""
    return mkd_plugin.get_config(name)


def shipped(name: str) -> Config:
    """Return a copy of a shipped config."""
    return copy.deepcopy(read_shipped(name))


def pretrain_config(recipe: Recipe, settings: Settings, checkpoint: Checkpoint, images: Images) -> Config:
    """Return the config of a pre-training, without seed and paths."""
    cfg = shipped(recipe.base)
    cfg.merge_from_dict(recipe.options(settings, checkpoint))
    images.adapt(cfg)
    return without_overhead(cfg)


def finetune_config(settings: Settings, measure: str, checkpoint: str, images: Images) -> Config:
    """Return the config of a fine-tuning, without seed, labels and paths."""
    cfg, tuning = shipped(FINETUNING), settings.finetunings[measure]
    warm_up = max(1, tuning.steps // 10)
    cfg.merge_from_dict(
        {
            'model.backbone': dict(arch=settings.arch, patch_size=settings.patch, drop_path_rate=0.0),
            'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'),
            'model.head.in_channels': settings.width,
            'optim_wrapper.optimizer': dict(lr=tuning.lr, fused=True),
            'train_dataloader.batch_size': tuning.batch,
            'train_cfg': dict(max_iters=tuning.steps, val_interval=tuning.steps),
            'param_scheduler.0.end': warm_up,
            'param_scheduler.1': dict(begin=warm_up, end=tuning.steps),
        }
    )
    images.adapt(cfg)
    return without_overhead(cfg)


def without_overhead(cfg: Config) -> Config:
    """Turn off what costs time here: packing the few entries of a data set, and a test besides the validation."""
    for loader in ('train_dataloader', 'val_dataloader'):
        if cfg.get(loader):
            cfg[loader].dataset.serialize_data = False
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    return cfg
