"""Every shipped config, made small: it parses, builds, and trains two steps in which every parameter gets a gradient."""

from __future__ import annotations

import math
import re

import pytest
import torch
from helpers.tiny_dense import DENSE
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mkd_plugin.engine.teacher_updates import fit_schedule
from mkd_plugin.models.protocols import Progress
from mkd_plugin.models.vit.block import resolve_arch
from mkd_plugin.preflight.plan import stages_asked_for
from mkd_plugin.utils.configs import ablations, config_root, get_ablation, get_config

TINY = dict(width=32, depth=4, num_heads=4)
SWIN = dict(depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], embed_dims=8)
SMALL = {  # options of the networks of a BackboneStudent
    'mmpretrain.ResNet': dict(stem_channels=8, base_channels=8),
    'mmpretrain.ResNet_CIFAR': dict(),
    'mmpretrain.SwinTransformer': dict(arch=SWIN, window_size=2, drop_path_rate=0.0),
    'mmseg.SwinTransformer': dict(SWIN, drop_path_rate=0.0),
    'mmpretrain.MAEHiViT': dict(arch='tiny', img_size=64, drop_path_rate=0.0),
    'timm.vit_base_r50_s16_224': dict(embed_dim=16, num_heads=2, depth=2),
    'timm.convnext_tiny': dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), drop_path_rate=0.0),
}
TEACHER = {**TINY, 'depth': 6}  # deep enough for 'mean:last-6'
NAMES = sorted(path.relative_to(config_root()).with_suffix('').as_posix() for path in config_root().rglob('*.py'))
PRETRAIN = [name for name in NAMES if name.split('/')[0] not in ('_base_', 'downstream') and '/finetune/' not in name]

FINETUNE = [
    name for name in NAMES if ('/finetune/' in name or '/transfer/' in name) and not any(kind in name for kind in DENSE)
]
ROWS = [
    (path.parent.name, row) for path in config_root().glob('*/ablations.yml') for row in ablations(path.parent.name)
]
FINETUNE.remove('any_student/finetune/resnet-ft_digits')  # a host's own network: test_any_student.py trains it
# behind the last tap of a student whose config says find_unused_parameters: the last block and the final norm
UNREAD = r'backbone\.(layers\.3\.(attn\.proj|ln2|ffn)|ln1)\.'


def test_names__are_found():
    assert len(PRETRAIN) >= 110 and len(FINETUNE) >= 30 and len(ROWS) >= 170


def shrink_teacher(teacher: dict) -> None:
    """A tiny network of seeded random weights in place of a file."""
    if 'checkpoint' in teacher or 'seed' in teacher:
        teacher.update(checkpoint=None, seed=teacher.get('seed') or 0, img_size=None)
    if teacher['type'] in ('ViTTeacher', 'CLIPTeacher'):
        teacher.update(arch=TEACHER)
    if teacher['type'] == 'CLIPTeacher' or 'projection' in teacher.get('network', {}):
        teacher.update(network={**teacher.get('network', {}), 'projection': 16})
    if teacher['type'] == 'TimmTeacher' and 'resnet' not in teacher['model']:
        own = dict(img_size=64, global_attn_indexes=(1,)) if 'samvit' in teacher['model'] else {}
        teacher.update(options=dict(depth=2, embed_dim=32, num_heads=2, **own, **teacher.get('options', {})))
        teacher.update(img_size=own.get('img_size'))
    if teacher['type'] == 'GeneratorTeacher':
        shrink_generator(teacher)
    if 'last' in teacher:
        teacher.last = 2
    if isinstance(teacher.get('start'), dict):
        shrink_teacher(teacher['start'])


class PatchBrightness(torch.nn.Module):
    """A tokenizer: the mean of a patch of 16 px, in 256 steps."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.avg_pool2d(images, 16).mean(1).flatten(1).tanh() * 127 + 128).long()


def shrink_generator(teacher: dict) -> None:
    """Random weights in a host's generator, for an image of 4 × 4 patches."""
    generator = teacher['generator']
    generator.pop('init_cfg', None)
    if generator['type'] == 'mmpretrain.VQKD':
        generator['encoder_config']['img_size'] = 64
        generator['quantize_kmeans_init'] = False  # 20 s
    if generator['type'] == 'mmpretrain.DALL-E':
        teacher['img_size'] = 32
    if generator['type'] == 'PerceptualVQGAN':  # the user's
        generator['type'] = PatchBrightness


def moved(tap: str | int, before: int, after: int) -> str | int:
    """A tap (or a masking's block) of a network that now has another depth, at the same share of it."""
    if isinstance(tap, int):
        return tap * after // before
    kind, _, index = tap.partition(':')
    return f'{kind}:{-(-(int(index) + 1) * after // before) - 1}' if index.isdigit() else tap


def shrink_taps(model: Config) -> None:
    """Move what names a block by its number; to be called while the networks still have their own sizes."""
    student = resolve_arch(model.backbone.arch).depth, TINY['depth']
    teachers = {
        name: (resolve_arch(teacher.arch).depth, TEACHER['depth']) if 'arch' in teacher else student
        for name, teacher in model.teachers.items()
    }
    for objective in model.objectives.values():
        for key, depths in (('tap', teachers[objective.teacher]), ('student', student)):
            taps = objective[key]
            objective[key] = moved(taps, *depths) if isinstance(taps, str) else [moved(tap, *depths) for tap in taps]
    if 'at' in model.masking:
        model.masking['at'] = [moved(place, *teachers[model.masking.teacher]) for place in model.masking['at']]


def shrink(cfg: Config) -> Config:
    """The same method with 4 × 4 patches and tiny networks."""
    model = cfg.model
    patch = model.backbone.patch_size
    if 'objectives' in model and 'arch' in model.backbone:
        shrink_taps(model)
    teachers = list(model.get('teachers', {}).values())
    hog = any(teacher.get('generator', {}).get('type') == 'mmpretrain.HOGGenerator' for teacher in teachers)
    side = 14 if hog else 4  # mmpretrain's HOG knows a grid of 14 × 14 only
    moving = any(
        teacher['type'] in ('MomentumTeacher', 'AnchoredTeacher') for teacher in teachers
    )  # may read 'mean:last-6' of a copy
    arch = {**TINY, 'depth': 6} if moving else TINY
    model.backbone.update(img_size=side * patch, init_cfg=None)
    if 'network' in model.backbone:
        pytest.importorskip(model.backbone.network.type.partition('.')[0])
        model.backbone.network.update(SMALL[model.backbone.network.type])
    else:  # drop path would leave the gradient of a whole block empty for so few images
        model.backbone.update(arch=arch, drop_path_rate=0.0)
    if model.get('masking', {}).get('type') == 'BlockMasking':
        share = model.masking.get('ratio') or 0.4
        model.masking = dict(type='BlockMasking', ratio=share, min_block=1)
    shrink_masking(model.get('masking', {}))
    for teacher in teachers:
        shrink_teacher(teacher)
    for objective in model.get('objectives', {}).values():
        if objective.get('head') and objective.head.type == 'TransformerDecoder':
            objective.head.update(depth=2, width=32, num_heads=4)
        elif objective.get('head'):
            sizes = dict(depth=2, width=32, num_heads=4)
            objective.head.update({key: value for key, value in sizes.items() if key in objective.head})
    if 'head' in model:
        model.head.update(in_channels=TINY['width'], init_cfg=None)
        model.train_cfg = None
    return cfg


def shrink_masking(masking: dict) -> None:
    """Numbers of patches for an image of 4 × 4 patches."""
    fitting = dict(min_block=1, min_visible=2, num_visible=4, count=2)
    masking.update({key: value for key, value in fitting.items() if key in masking})
    if 'masking' in masking:
        shrink_masking(masking['masking'])


def build(cfg: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({'data_preprocessor': cfg.get('data_preprocessor'), **cfg.model})
        model.init_weights()
    return model.train()


def train_two_steps(
    model: torch.nn.Module, images: torch.Tensor, samples: list | None, unread: str | None = None
) -> None:
    """Train; parameters whose names match ``unread`` have no gradient, all others have."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    if hasattr(model, 'begin_training'):
        model.begin_training(Progress(0, 2))
    for _ in range(2):
        losses = {name: loss for name, loss in model.loss(images, samples).items() if name.startswith('loss')}
        total = sum(losses.values())
        assert math.isfinite(total.item())
        optimizer.zero_grad()
        total.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert {name for name in without if not (unread and re.match(unread, name))} == set()
        assert not unread or without
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and name not in without]
        zero = [name for name, p in trained if not p.grad.abs().sum() > 0]
        if hasattr(model, 'masking') and not model.masking.hides:
            zero = [name for name in zero if not name.endswith('mask_token')]  # a decoder that has nothing to fill in
        assert not [name for name in zero if not name.endswith('bias')]  # a key's bias has none, by symmetry
        optimizer.step()


def check_pretraining(cfg: Config) -> None:
    shrink(cfg)
    model = build(cfg)
    for name, weight in model.backbone.named_parameters() if 'network' in cfg.model.backbone else ():
        if name.endswith('weight') and not weight.any():
            torch.nn.init.ones_(weight)  # of a branch's last norm: the branch would have no gradient at first
    side, unread = model.backbone.img_size, UNREAD if cfg.get('find_unused_parameters') else None
    train_two_steps(model, torch.randn(8, 3, side, side), None, unread)


@pytest.mark.parametrize('name', PRETRAIN)
def test_pretraining_config__trains_two_steps(name):
    check_pretraining(get_config(name))


@pytest.mark.parametrize('method, row', ROWS)
def test_ablation_row__trains_two_steps(method, row):
    check_pretraining(get_ablation(method, row))


@pytest.mark.parametrize('name', FINETUNE)
def test_finetuning_config__trains_two_steps(name):
    cfg = shrink(get_config(name))
    classes = cfg.model.head.num_classes
    model = build(cfg)
    samples = [DataSample().set_gt_label(i % classes) for i in range(8)]
    train_two_steps(model, torch.randn(8, 3, model.backbone.img_size, model.backbone.img_size), samples)


RUN_HOOKS = {
    *('AtomicCheckpointHook', 'PortableCheckpointHook', 'ExactResumeHook', 'FiniteLossHook', 'PreemptionHook'),
    *('MetricsHook', 'CurvesHook', 'ProgressHook', 'UnusedParametersHook'),
}


@pytest.mark.parametrize('name', [*PRETRAIN, *FINETUNE])
def test_config__is_safe_and_recorded(name):
    cfg = get_config(name)
    ours = [hook.type.removeprefix('mkd_plugin.') for hook in cfg.default_hooks.values() if 'mkd_plugin' in hook.type]
    assert set(ours) >= RUN_HOOKS
    backends = [backend.type for backend in cfg.visualizer.vis_backends]
    assert backends == ['LocalVisBackend', 'TensorboardVisBackend']


@pytest.mark.parametrize('method, row', ROWS)
def test_ablation_row__stages_fit_the_run(method, row):
    """Stages given as epochs add up to the run, and the warm-up of every stage is the one that is written."""
    cfg = get_ablation(method, row)
    stages, total = stages_asked_for(cfg), cfg.train_cfg.max_epochs
    if len(set(stages.shares)) > 1:
        assert stages.lengths(total) == list(stages.shares)
    warm_ups = {fit_schedule(cfg.param_scheduler, n, by_epoch=True)[0]['end'] for n in stages.lengths(total)}
    assert len(stages.shares) == 1 or warm_ups == {cfg.param_scheduler[0].end}


def test_get_ablation__names_the_rows_for_an_unknown_one():
    with pytest.raises(ValueError, match='momentum-0.9998'):
        get_ablation('dbot', 'momentum')
    with pytest.raises(ValueError, match='dbot'):
        get_ablation('nothing', 'row')


@pytest.mark.parametrize(
    'name, key, value',
    [
        # shared/methods.md, dBOT: Table A1 default column and reference code
        ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', 'optim_wrapper.optimizer.lr', 2.4e-3),
        ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', 'optim_wrapper.optimizer.betas', (0.9, 0.95)),
        ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', 'optim_wrapper.optimizer.weight_decay', 0.05),
        ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', 'optim_wrapper.clip_grad.max_norm', 3.0),
        ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', 'train_dataloader.batch_size', 512),
        ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', 'train_cfg.max_epochs', 1600),
        ('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k', 'param_scheduler.0.end', 40),
        ('dbot/dbot_vit-large-p16_8xb512-2x800e_in1k', 'model.backbone.drop_path_rate', 0.2),
        ('dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k', 'model.backbone.drop_path_rate', 0.3),
        ('dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k', 'model.objectives.feature.head.drop_path_rate', 0.3),
        ('dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k', 'model.backbone.patch_size', 14),
        ('dbot/dbot_vit-huge-p14_8xb512-2x800e_in1k', 'model.teachers.boot.start_depth', 0),
        # Table A2
        ('dbot/finetune/in1k/dbot-ft_vit-base-p16_8xb128-100e_in1k', 'optim_wrapper.optimizer.lr', 1.2e-3),
        (
            'dbot/finetune/in1k/dbot-ft_vit-base-p16_8xb128-100e_in1k',
            'optim_wrapper.paramwise_cfg.layer_decay_rate',
            0.75,
        ),
        ('dbot/finetune/in1k/dbot-ft_vit-base-p16_8xb128-100e_in1k', 'model.backbone.drop_path_rate', 0.2),
        ('dbot/finetune/in1k/dbot-ft_vit-base-p16_8xb128-100e_in1k', 'train_cfg.max_epochs', 100),
        ('dbot/finetune/in1k/dbot-ft_vit-large-p16_8xb128-50e_in1k', 'train_cfg.max_epochs', 50),
        ('dbot/finetune/in1k/dbot-ft_vit-huge-p14_8xb128-10e_in1k-448px', 'optim_wrapper.optimizer.lr', 2.8e-4),
        (
            'dbot/finetune/in1k/dbot-ft_vit-huge-p14_8xb128-10e_in1k-448px',
            'optim_wrapper.paramwise_cfg.layer_decay_rate',
            0.9,
        ),
        ('mae/mae_vit-base-p16_8xb512-1600e_in1k', 'optim_wrapper.optimizer.lr', 2.4e-3),
    ],
)
def test_recipe__has_the_papers_value(name, key, value):
    found = get_config(name)
    for part in key.split('.'):
        found = found[int(part) if part.isdigit() else part]
    assert found == (pytest.approx(value) if isinstance(value, float) else value)
