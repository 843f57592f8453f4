"""The numbers of the recipes, each against the paper's, copied by hand from shared/methods.md."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from mkd_plugin.models import students
from mkd_plugin.utils.configs import ablations, get_ablation
from mkd_plugin.utils.configs import get_config as read_config

get_config = cache(read_config)  # nothing here changes one

CLIP_FT = 'downstream/mmpretrain/clip-base-p16_ft_8xb128-50e_in1k'
COLUMNS = (
    *('lr', 'betas', 'eps', 'weight_decay', 'clip', 'epochs', 'warm_up', 'least', 'drop_path', 'layer_scale'),
    *('batch', 'crop', 'jitter'),
)
# fmt: off
PRETRAINING = {
    'maskdistill/maskdistill_vit-base-p16_8xb256-300e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 300, 10, 1e-5, 0.1, 0.1, 2048, (0.2, 1.0), 0.4),
    'maskdistill/maskdistill_vit-base-p16_data-masks_8xb256-300e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 300, 10, 1e-5, 0.1, 0.1, 2048, (0.2, 1.0), 0.4),
    'maskdistill/maskdistill_vit-base-p16_8xb256-800e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 800, 10, 1e-5, 0.1, 0.1, 2048, (0.2, 1.0), 0.4),
    'maskdistill/maskdistill_vit-large-p16_8xb256-300e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 300, 10, 1e-5, 0.2, 1e-5, 2048, (0.2, 1.0), 0.4),
    'maskdistill/maskdistill_vit-large-p16_8xb256-800e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 800, 10, 1e-5, 0.2, 1e-5, 2048, (0.2, 1.0), 0.4),
    'maskdistill/maskdistill_vit-base-p16_teacher-clip-large_8xb256-300e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 300, 10, 1e-5, 0.1, 0.1, 2048, (0.2, 1.0), 0.4),
    'maskdistill/maskdistill_vit-large-p16_teacher-clip-large_8xb256-300e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 300, 10, 1e-5, 0.2, 1e-5, 2048, (0.2, 1.0), 0.4),
    'maskdistill/maskdistill_vit-huge-p14_teacher-clip-large_8xb256-300e_in1k':
        (1.5e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 300, 10, 1e-5, 0.25, 1e-5, 2048, (0.2, 1.0), 0.4),
    'dbot/dbot-sym_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k':
        (3e-3, (0.9, 0.98), 1e-6, 0.05, 3.0, 1600, 10, 1e-5, 0.1, 0.1, 4096, (0.4, 1.0), 0.4),
    'dbot/dbot-sym_vit-base-p16_teacher-dino-base_8xb512-1x1600e_in1k':
        (3e-3, (0.9, 0.98), 1e-6, 0.05, 3.0, 1600, 10, 1e-5, 0.1, 0.1, 4096, (0.4, 1.0), 0.4),
    'dbot/dbot-sym_vit-large-p16_teacher-clip-large_8xb512-1x1600e_in1k':
        (3e-3, (0.9, 0.98), 1e-6, 0.05, 3.0, 1600, 10, 1e-5, 0.1, 0.1, 4096, (0.4, 1.0), 0.4),
    'dbot/dbot-sym_vit-huge-p14_teacher-clip-large_8xb512-1x1600e_in1k':
        (3e-3, (0.9, 0.98), 1e-6, 0.05, 3.0, 1600, 10, 1e-5, 0.1, 0.1, 4096, (0.4, 1.0), 0.4),
    'fd/fd_vit-base-p16_teacher-clip-base_8xb256-300e_in1k':
        (1.2e-3, (0.9, 0.999), 1e-8, 0.05, 3.0, 300, 10, 1e-5, 0.2, None, 2048, (0.2, 1.0), 0.4),
}
FINETUNING_COLUMNS = ('lr', 'layer_decay', 'epochs', 'warm_up', 'least', 'drop_path', 'clip', 'layer_scale', 'betas')
FINETUNING = {
    'maskdistill/finetune/in1k/maskdistill-ft_vit-base-p16_8xb128-100e_in1k':
        (5e-4, 0.65, 100, 20, 1e-6, 0.1, None, 0.1, (0.9, 0.999)),
    'maskdistill/finetune/in1k/maskdistill-ft_vit-large-p16_8xb128-50e_in1k':
        (5e-4, 0.8, 50, 5, 1e-6, 0.2, None, 1e-5, (0.9, 0.999)),
    'maskdistill/finetune/in1k/maskdistill-ft_vit-huge-p14_8xb128-30e_in1k':
        (2e-4, 0.85, 30, 5, 1e-6, 0.25, None, 1e-5, (0.9, 0.999)),
    'dbot/finetune/in1k/dbot-ft_vit-base-p16_teacher-clip-base_8xb128-100e_in1k':
        (2e-4, 0.75, 100, 5, 1e-6, 0.1, None, 0.1, (0.9, 0.999)),
    'dbot/finetune/in1k/dbot-ft_vit-large-p16_teacher-clip-large_8xb128-50e_in1k':
        (2e-4, 0.75, 50, 5, 1e-6, 0.2, None, 0.1, (0.9, 0.999)),
    'dbot/finetune/in1k/dbot-ft_vit-huge-p14_teacher-clip-large_8xb128-50e_in1k':
        (2e-4, 0.75, 50, 5, 1e-6, 0.3, None, 0.1, (0.9, 0.999)),
    'dbot/finetune/in1k/dbot-ft-script_vit-base-p16_teacher-clip-base_8xb128-100e_in1k':
        (2e-4, 0.65, 100, 20, 1e-6, 0.1, None, 0.1, (0.9, 0.999)),
    'dbot/finetune/in1k/dbot-ft-script_vit-large-p16_teacher-clip-large_8xb128-50e_in1k':
        (1e-4, 0.8, 50, 5, 1e-6, 0.2, None, 0.1, (0.9, 0.999)),
    'dbot/finetune/in1k/dbot-ft-script_vit-huge-p14_teacher-clip-large_8xb128-50e_in1k':
        (5e-5, 0.85, 50, 5, 1e-6, 0.3, None, 0.1, (0.9, 0.999)),
    CLIP_FT: (5e-5, 0.6, 50, 10, 1e-7, 0.0, None, None, (0.9, 0.95)),
}
# fmt: on


def optimisation(cfg: Any) -> dict[str, Any]:
    """The numbers that pre-training and fine-tuning share, from wherever the config keeps them."""
    optimizer, (warm_up, decay) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, decay.type) == ('LinearLR', 0, 'CosineAnnealingLR')
    assert decay.begin == warm_up.end and decay.end == cfg.train_cfg.max_epochs
    assert warm_up.convert_to_iter_based and decay.convert_to_iter_based
    clip = cfg.optim_wrapper.get('clip_grad')
    return dict(
        lr=optimizer.lr,
        betas=tuple(optimizer.betas),
        eps=optimizer.get('eps', 1e-8),
        weight_decay=optimizer.weight_decay,
        clip=clip and clip.max_norm,
        epochs=cfg.train_cfg.max_epochs,
        warm_up=warm_up.end,
        least=decay.eta_min_ratio * optimizer.lr if 'eta_min_ratio' in decay else decay.eta_min,
        drop_path=cfg.model.backbone.drop_path_rate,
        layer_scale=cfg.model.backbone.get('layer_scale'),
        batch=8 * cfg.train_dataloader.batch_size,
    )


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Key by key: a decayed rate is computed, so the last digit may differ."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key


@pytest.mark.parametrize('name', PRETRAINING)
def test_pretraining_recipe__has_the_papers_numbers(name):
    cfg = get_config(name)
    steps = {step.type.removeprefix('mkd_plugin.'): step for step in cfg.train_dataloader.dataset.pipeline}
    assert [*steps].index('ColorJitter') < [*steps].index('CropForDevice') < [*steps].index('FlipOnDevice')
    jitter = steps['ColorJitter']
    assert jitter.hue == 0 and jitter.brightness == jitter.contrast == jitter.saturation
    crop = tuple(steps['CropForDevice'].crop_ratio_range)
    found = {**optimisation(cfg), 'crop': crop, 'jitter': jitter.brightness}
    assert_same(found, dict(zip(COLUMNS, PRETRAINING[name], strict=True)))
    assert cfg.auto_scale_lr.base_batch_size == found['batch']
    assert cfg.model.backbone.position == 'none' and cfg.model.backbone.relative_position == 'shared'


@pytest.mark.parametrize('name', FINETUNING)
def test_finetuning_recipe__has_the_papers_numbers(name):
    cfg = get_config(name)
    found = {**optimisation(cfg), 'layer_decay': cfg.optim_wrapper.paramwise_cfg.layer_decay_rate}
    assert found.pop('batch') == 1024 and found.pop('weight_decay') == 0.05 and found.pop('eps') == 1e-8
    assert_same(found, dict(zip(FINETUNING_COLUMNS, FINETUNING[name], strict=True)))
    assert cfg.model.backbone.relative_position == 'per_block'
    assert cfg.model.head.loss.label_smooth_val == 0.1
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert (steps['RandAugment'].magnitude_level, steps['RandAugment'].magnitude_std) == (9, 0.5)
    assert steps['RandomErasing'].erase_prob == 0.25
    augments = cfg.model.train_cfg and {entry.type: entry.alpha for entry in cfg.model.train_cfg.augments}
    assert augments == (None if name == CLIP_FT else {'Mixup': 0.8, 'CutMix': 1.0})


@pytest.mark.parametrize('name', [name for name in PRETRAINING if not name.startswith('fd')])
def test_symmetric_recipe__hides_at_most_two_fifths_of_the_patches(name):
    assert get_config(name).model.masking == dict(type='BlockMasking', ratio=0.4)


@pytest.mark.parametrize('name', [*PRETRAINING, 'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k'])
def test_cls_token__decays_in_asymmetric_recipes_only(name):
    """BEiT's pre-training, which the symmetric recipes follow, exempts cls; dBOT's asymmetric code and MAE's do not."""
    cfg = get_config(name)
    options = {**cfg.optim_wrapper.optimizer, 'type': 'SGD', 'lr': 1.0}
    optimizer = {key: options[key] for key in ('type', 'lr', 'weight_decay')}
    kind = getattr(students, cfg.model.backbone.type)
    network = kind(arch=dict(width=16, depth=1, num_heads=2), position='learned')
    groups = build_optim_wrapper(
        network, dict(type='OptimWrapper', optimizer=optimizer, paramwise_cfg=cfg.optim_wrapper.paramwise_cfg)
    )
    decay = {
        name: group['weight_decay'] for group in groups.param_groups for name in names_of(network, group['params'])
    }
    symmetric = cfg.model.backbone.type != 'VisibleViT'
    assert decay['cls_token'] == decay['pos_embed'] == (0 if symmetric else 0.05)
    assert decay['layers.0.attn.qkv.weight'] == 0.05 and decay['layers.0.attn.qkv.bias'] == decay['ln1.weight'] == 0


def names_of(network: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> list[str]:
    ids = {id(parameter) for parameter in parameters}
    return [name for name, parameter in network.named_parameters() if id(parameter) in ids]


@pytest.mark.parametrize('name', PRETRAINING)
def test_teacher__has_the_students_grid(name):
    """A /14 teacher of a /16 student gets 196 px; of a /14 student the whole 224 px."""
    model = get_config(name).model
    teacher = model.teachers.teacher
    assert teacher.get('img_size', 224) // teacher.patch_size == 224 // model.backbone.patch_size


MASKDISTILL = {  # loss, target layers, plain distillation, relative bias, teachers: top-1 and mIoU
    'clip-mse': (84.6, 52.8),
    'clip-cosine': (84.9, 52.9),
    'clip-smooth-l1-batch-norm': (84.9, 53.1),
    'default': (85.0, 53.8),
    'dino-mse': (84.3, 49.6),
    'dino-cosine': (84.5, 49.6),
    'dino': (84.5, 50.4),
    'clip-mean-of-3': (85.0, 53.5),
    'clip-mean-of-6': (85.1, 53.4),
    'dino-mean-of-3': (84.4, 49.7),
    'dino-mean-of-6': (84.3, 49.8),
    'plain-300': (85.3, None),
    'masked-800': (85.5, 54.3),
    'plain-800': (85.2, None),
    'masked-large-300': (86.8, None),
    'plain-large-300': (85.4, None),
    'without-relative-bias': (84.9, 52.7),
    'block-0.9': (84.0, None),
    'teacher-clip-yfcc15m': (83.8, 47.4),
    'teacher-slip-base': (84.3, 49.9),
    'teacher-slip-base-longer': (84.6, 50.8),
    'teacher-clip-cc3m': (83.7, 45.7),
    'teacher-clip-cc12m': (84.1, 48.3),
    'teacher-resnet50': (83.5, None),
    'teacher-simclr': (84.1, 49.4),
    'teacher-mae': (84.3, None),
    'teacher-beit': (83.8, 46.6),
    'teacher-beitv2': (85.0, None),
    'teacher-clip-large': (85.3, 54.3),
}


def test_maskdistill_rows__have_the_papers_figures():
    printed = {name: (row['paper'], row['miou']) for name, row in ablations('maskdistill').items() if row['paper']}
    assert printed == MASKDISTILL


def test_dbot_symmetric_rows__have_the_papers_figures():
    rows = ablations('dbot')
    assert {name: rows[f'symmetric-{name}']['paper'] for name in ('random', 'dino', 'clip')} == dict(
        random=83.8, dino=84.8, clip=85.7
    )
    assert get_ablation('dbot', 'symmetric-huge-78-hidden').model.masking == dict(type='BlockMasking', num_hidden=78)


def test_ablation_rows__differ_from_their_base_only_where_they_say():
    plain = get_ablation('maskdistill', 'plain-300').model
    base = get_config('maskdistill/maskdistill_vit-base-p16_8xb256-300e_in1k').model
    assert plain.teachers == base.teachers and plain.objectives.feature.loss == base.objectives.feature.loss
    assert plain.masking == dict(type='NoMasking') and plain.objectives.feature.region == 'all'
    assert {**plain.backbone, 'type': 'MaskTokenViT'} == base.backbone
