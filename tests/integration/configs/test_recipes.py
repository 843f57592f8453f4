"""How the recipes fit together. Their numbers are compared in test_papers.py."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from mkd_plugin.models import students
from mkd_plugin.utils.configs import config_root
from mkd_plugin.utils.configs import get_config as read_config

get_config = cache(read_config)  # nothing here changes one


def matching(*patterns: str) -> list[str]:
    names = sorted(path.relative_to(config_root()).with_suffix('').as_posix() for path in config_root().rglob('*.py'))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


BLOCKWISE = matching('maskdistill/maskdistill_*e_in1k', 'dbot/dbot-sym_*')
FD = matching('fd/fd_*')
PRETRAINING = [*BLOCKWISE, *FD]
FINETUNING = matching('*/finetune/in1k/*', 'downstream/mmpretrain/*_in1k')


def test_names__are_found():
    assert (len(BLOCKWISE), len(FD)) == (12, 3) and len(FINETUNING) >= 30


@pytest.mark.parametrize('name', [*PRETRAINING, *FINETUNING])
def test_schedule__warms_up_and_then_decays_until_the_end(name):
    cfg = get_config(name)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, decay.type) == ('LinearLR', 0, 'CosineAnnealingLR')
    assert decay.begin == warm_up.end and decay.end == cfg.train_cfg.max_epochs
    assert warm_up.convert_to_iter_based and decay.convert_to_iter_based


@pytest.mark.parametrize('name', [*PRETRAINING, *FINETUNING])
def test_rate__is_that_of_eight_gpus(name):
    cfg = get_config(name)
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size


@pytest.mark.parametrize('name', FINETUNING)
def test_finetuning__has_adamws_own_eps(name):
    default = inspect.signature(torch.optim.AdamW).parameters['eps'].default
    assert get_config(name).optim_wrapper.optimizer.get('eps', default) == default


@pytest.mark.parametrize('name', FINETUNING)
def test_finetuning__clips_only_in_dbots_script_for_large(name):
    clips = get_config(name).optim_wrapper.get('clip_grad') is not None
    assert clips == name.endswith('/dbot-ft-script_vit-large-p16_8xb128-50e_in1k')


@pytest.mark.parametrize('name', FINETUNING)
def test_finetuning__scales_the_least_rate_by_layer(name):
    """A fixed least rate would raise the lowest layers' rates at the end."""
    decay = get_config(name).param_scheduler[1]
    assert 'eta_min_ratio' in decay and 'eta_min' not in decay


@pytest.mark.parametrize('name', PRETRAINING)
def test_symmetric_recipe__jitters_colours_alike_before_crop_and_flip(name):
    steps = {step.type.removeprefix('mkd_plugin.'): step for step in get_config(name).train_dataloader.dataset.pipeline}
    assert [*steps].index('ColorJitter') < [*steps].index('CropForDevice') < [*steps].index('FlipOnDevice')
    jitter = steps['ColorJitter']
    assert jitter.hue == 0 and jitter.brightness == jitter.contrast == jitter.saturation


@pytest.mark.parametrize('name', BLOCKWISE)
def test_blockwise_recipe__leaves_the_sizes_of_blocks_to_the_masking(name):
    assert [*get_config(name).model.masking] == ['type', 'ratio']


@pytest.mark.parametrize('name', FD)
def test_fd__has_no_layer_scale(name):
    """Our choice."""
    assert get_config(name).model.backbone.get('layer_scale') is None


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
    symmetric, full = cfg.model.backbone.type != 'VisibleViT', options['weight_decay']
    assert decay['cls_token'] == decay['pos_embed'] == (0 if symmetric else full)
    assert decay['layers.0.attn.qkv.weight'] == full > 0
    assert decay['layers.0.attn.qkv.bias'] == decay['ln1.weight'] == 0


def names_of(network: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> list[str]:
    ids = {id(parameter) for parameter in parameters}
    return [name for name, parameter in network.named_parameters() if id(parameter) in ids]


@pytest.mark.parametrize('name', PRETRAINING)
def test_teacher__has_the_students_grid(name):
    """A /14 teacher of a /16 student gets 196 px; of a /14 student the whole 224 px."""
    model: Any = get_config(name).model
    teacher = model.teachers.teacher
    assert teacher.get('img_size', 224) // teacher.get('patch_size', 16) == 224 // model.backbone.patch_size
