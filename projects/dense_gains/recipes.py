"""The starts and the tasks: shipped configs with changed options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmengine.config import Config

from projects.dense_gains.scenes import CLASSES
from projects.dense_gains.settings import Settings, Tuning
from projects.paper_claims.recipes import Checkpoint, Options, schedule, shipped, without_overhead

PIXELS: Options = dict(mean=[100.0] * 3, std=[65.0] * 3)
TEACHER: Options = dict(pixel_mean=PIXELS['mean'], pixel_std=PIXELS['std'])
BACKGROUND = 0.2  # weight of the background's class: five of six pixels are background
SCRATCH = 'scratch'


@dataclass(frozen=True)
class Recipe:
    """A pre-training; its options are given the settings and the paths of other networks."""

    base: str  #: Shipped config
    options: Callable[[Settings, Checkpoint], Options]  #: Changed options
    teachers: tuple[str, ...] = ()  #: Networks that it needs
    file: str = 'iter_{steps}.pth'  #: Its network in the work folder
    large: bool = False  #: Whether it is a larger teacher's, trained for ``teacher_steps``

    def steps(self, settings: Settings) -> int:
        """Return its length."""
        return settings.teacher_steps if self.large else settings.steps


def pretraining(settings: Settings, steps: int, stages: int = 1) -> Options:
    """Return the options of every pre-training; a schedule is that of one stage."""
    return {
        'optim_wrapper.optimizer.fused': True,
        'param_scheduler': schedule(steps // stages, by_epoch=False),
        'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=steps),
        'train_dataloader.batch_size': settings.batch,
        'train_dataloader.sampler': dict(_delete_=True, type='InfiniteSampler', shuffle=True),
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': max(1, steps // 4),
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        'log_processor': dict(by_epoch=False),
    }


def distiller(settings: Settings, objective: str | None = None, *, large: bool = False, stages: int = 1) -> Options:
    """Return the options of every masked pre-training; ``objective`` names the one that has a decoder."""
    steps = settings.teacher_steps if large else settings.steps
    options = {
        **pretraining(settings, steps, stages),
        'model.backbone': dict(arch=settings.large if large else settings.arch, img_size=settings.crop, patch_size=8),
    }
    if objective is not None:
        options[f'model.objectives.{objective}.head'] = dict(depth=2, width=settings.decoder, num_heads=4)
    return options


def teacher(settings: Settings, checkpoint: str, *, large: bool = False) -> Options:
    """Return what changes of a frozen teacher."""
    arch = settings.large if large else settings.arch
    return dict(arch=arch, patch_size=8, checkpoint=checkpoint, seed=None, **TEACHER)


def mae(settings: Settings, checkpoint: Checkpoint) -> Options:
    """MAE on normalised pixels."""
    return distiller(settings, 'pixel')


def mae_large(settings: Settings, checkpoint: Checkpoint) -> Options:
    """MAE of twice the width, DMAE's teacher."""
    return distiller(settings, 'pixel', large=True)


def dbot(settings: Settings, checkpoint: Checkpoint) -> Options:
    """Two stages of dBOT, each half as long as the other pre-trainings."""
    return distiller(settings, 'feature', stages=2)


def dmae(settings: Settings, checkpoint: Checkpoint) -> Options:
    """DMAE: aligned with the larger MAE after the fourth of six blocks, the last within ¾ of the depth."""
    aligned = dict(tap='block:3', student='block:3')
    return {
        **distiller(settings, 'pixel'),
        'model.teachers.mae': teacher(settings, checkpoint('mae-large'), large=True),
        'model.objectives.feature': aligned,
    }


def hybrid(settings: Settings, checkpoint: Checkpoint) -> Options:
    """Hybrid Distill: features of the supervised network, relations of MAE's."""
    return {
        **distiller(settings),
        'model.masking.at': (0, 2, 4),
        'model.teachers.mim': teacher(settings, checkpoint('mae')),
        'model.teachers.semantic': teacher(settings, checkpoint('supervised')),
    }


def supervised(settings: Settings, checkpoint: Checkpoint) -> Options:
    """Classification, by mmpretrain's own ViT at its cls token, of the contents of all boxes in all training scenes."""
    width = settings.width
    arch = dict(embed_dims=width, num_layers=6, num_heads=4, feedforward_channels=4 * width)
    vit = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=48, patch_size=8, out_type='cls_token')
    return {
        **pretraining(settings, settings.steps),
        'model.backbone': dict(_delete_=True, **vit),
        'model.head': dict(num_classes=len(CLASSES), in_channels=width),
        'train_dataloader.dataset': dict(classes=list(CLASSES), indices=None),
    }


RECIPES = {
    'supervised': Recipe('downstream/mmpretrain/vit-digits_ft_digit-scenes', supervised),
    'mae': Recipe('mae/mae_digits', mae),
    'mae-large': Recipe('mae/mae_digits', mae_large, large=True),
    'dbot': Recipe('dbot/dbot_digit-scenes', dbot, file='stage_2.pth'),
    'dmae': Recipe('dmae/dmae_digits', dmae, ('mae-large',)),
    'hybrid': Recipe('hybrid_distill/hybrid_digits', hybrid, ('mae', 'supervised')),
}
STARTS = (SCRATCH, 'supervised', 'mae', 'dbot', 'dmae', 'hybrid')
MASKED = ('mae', 'dbot', 'dmae', 'hybrid')  # of which the best is judged


def pretrain_config(name: str, settings: Settings, checkpoint: Checkpoint) -> Config:
    """Return the config of a pre-training, without seed and paths."""
    recipe = RECIPES[name]
    cfg = shipped(recipe.base)
    if name != 'supervised':
        scenes = shipped('dbot/dbot_digit-scenes')
        cfg.train_dataloader, cfg.data_preprocessor = scenes.train_dataloader, scenes.data_preprocessor
        cfg.train_dataloader.dataset.pipeline[1].update(scale=settings.crop, crop_ratio_range=(0.4, 1.0))
    cfg.merge_from_dict(recipe.options(settings, checkpoint))
    cfg.data_preprocessor.update(PIXELS)
    if name == 'supervised':
        cfg.data_preprocessor.num_classes = len(CLASSES)
        cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    return without_overhead(cfg)


def finetune_config(task: str, settings: Settings, tuning: Tuning, checkpoint: str | None) -> Config:
    """Return the config of a fine-tuning, without seed and paths; ``checkpoint``: None from scratch."""
    steps = settings.lengths[task][tuning.length]
    cfg = shipped(BASES[task])
    cfg.merge_from_dict(
        {
            'model.backbone': dict(arch=settings.arch, img_size=settings.side, out_indices=(1, 2, 3, 5)),
            'model.data_preprocessor': PIXELS,
            'optim_wrapper.optimizer': dict(lr=tuning.lr, fused=True),
            'optim_wrapper.paramwise_cfg.layer_decay_rate': tuning.decay,
            'param_scheduler.0.end': max(1, steps // 10),
            'param_scheduler.1': dict(begin=max(1, steps // 10), end=steps),
            'train_cfg': dict(max_iters=steps, val_interval=steps),
            'train_dataloader.batch_size': settings.scenes,
            'train_dataloader.dataset.indices': settings.labelled,
        }
    )
    if checkpoint is not None:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
    CHANGES[task](cfg, settings)
    cfg.default_hooks.checkpoint = None  # a fine-tuning is too short to be resumed
    cfg.default_hooks.pop('curves')  # the page has one for all
    return cfg


def detector(cfg: Config, settings: Settings) -> None:
    """Keep the first stage of the cascade, which makes it a Mask R-CNN, with strides of 4 to 32."""
    strides, heads = [4, 8, 16, 32], cfg.model.roi_head
    heads.update(num_stages=1, stage_loss_weights=[1.0], bbox_head=heads.bbox_head[:1])
    cfg.model.train_cfg.rcnn = cfg.model.train_cfg.rcnn[:1]
    cfg.model.train_cfg.rcnn[0].sampler.num = 24  # of three objects at most
    heads.bbox_head[0].num_classes = heads.mask_head.num_classes = len(CLASSES)
    for extractor in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        extractor.update(featmap_strides=strides, finest_scale=28)  # every object is read at the finest stride
    cfg.model.rpn_head.anchor_generator.update(strides=strides, scales=[4], ratios=[0.5, 1.0, 2.0])
    cfg.model.data_preprocessor.pad_size_divisor = 32
    cfg.model.neck[0].update(scales=(2, 1, 0.5, 0.25), in_channels=settings.width)
    cfg.model.neck[1].in_channels = [settings.width] * 4
    cfg.train_dataloader.dataset.pipeline[2].scale = (settings.side,) * 2


def segmentor(cfg: Config, settings: Settings) -> None:
    """Give UperNet strides of 4 to 32, and the classes."""
    names = ('background', *CLASSES)
    cfg.model.neck.update(scales=(2, 1, 0.5, 0.25), in_channels=settings.width)
    cfg.model.decode_head.in_channels = [settings.width] * 4
    cfg.model.auxiliary_head.in_channels = settings.width
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = len(names)
        head.loss_decode.class_weight = [BACKGROUND] + [1.0] * len(CLASSES)
    cfg.model.data_preprocessor.size = (settings.side,) * 2
    resize, crop = cfg.train_dataloader.dataset.pipeline[2:4]
    resize.scale, crop.crop_size = (settings.side,) * 2, (settings.side,) * 2


BASES = {
    'detection': 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes',
    'segmentation': 'downstream/mmseg/vit-digits_upernet_digit-scenes',
}
CHANGES = {'detection': detector, 'segmentation': segmentor}
