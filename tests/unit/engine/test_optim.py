"""Layer-wise rate decay: the papers' rule for a classifier, a detector and a segmentor, schedules, resume, the table."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

from mkd_plugin import get_config
from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.engine import LayerDecayConstructor
from mkd_plugin.engine.optim import group_table

DEPTH, DECAY, RATE = 4, 0.5, 1e-3
KINDS = {
    'mmpretrain': 'dbot/finetune/digits/dbot-ft_digits',
    'mmdet': 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes',
    'mmseg': 'downstream/mmseg/vit-digits_upernet_digit-scenes',
}


def build(scope: str, **backbone) -> nn.Module:
    """A host's own model on a tiny ViT that has everything that can be learned: tables, scales, positions, cls."""
    model = get_config(KINDS[scope]).model
    width = model.backbone.arch.width
    model.backbone.update(
        arch=dict(width=width, depth=DEPTH, num_heads=4), relative_position='per_block', layer_scale=0.1, init_cfg=None
    )
    if scope != 'mmpretrain':
        model.backbone.out_indices = (0, 1, 2, 3)
    model.backbone.update(backbone)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model)


def optimise(model: nn.Module, scope: str = 'mmpretrain', rate: float = DECAY, **changes):
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=RATE, weight_decay=0.05),
        constructor='mkd_plugin.LayerDecayConstructor',
        paramwise_cfg=dict(layer_decay_rate=rate),
    )
    with DefaultScope.overwrite_default_scope(scope):
        return build_optim_wrapper(model, ConfigDict({**cfg, **changes}))


def test_few_groups__are_mmengines_joined():
    """Every parameter keeps its rate and decay; a step gives the same weights."""
    model = MODELS.build(get_config('maskdistill/maskdistill_digits').model)
    special = dict(
        flat_decay_mult=0.0,
        custom_keys={'backbone.cls_token': dict(decay_mult=0.0), 'head': dict(lr_mult=0.1, betas=[0.9, 0.9])},
    )
    default = dict(constructor='DefaultOptimWrapperConstructor', paramwise_cfg=special)
    few = dict(constructor='mkd_plugin.FewGroupsConstructor', paramwise_cfg=special)
    updated = []
    for changes in (default, few):
        copied = copy.deepcopy(model)
        wrapper = optimise(copied, **changes)
        updated.append((settings(copied, wrapper), copied, wrapper))
        for number, parameter in enumerate(copied.parameters()):
            parameter.grad = torch.full_like(parameter, number - 20.0)
        wrapper.step()
    (wanted, theirs, many), (found, ours, joined) = updated
    assert found == wanted and len(many.optimizer.param_groups) > 40 and len(joined.optimizer.param_groups) <= 4
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_few_groups__still_refuse_options_that_nothing_reads():
    with pytest.raises(ValueError, match="nothing reads 'flat_decay'"):
        optimise(nn.Linear(2, 2), constructor='mkd_plugin.FewGroupsConstructor', paramwise_cfg=dict(flat_decay=0.0))


def settings(model: nn.Module, wrapper) -> dict[str, tuple[float, float]]:
    """(rate, weight decay) of every parameter in the optimiser; each must be there once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[p], (g['lr'], g['weight_decay'])) for g in wrapper.optimizer.param_groups for p in g['params']]
    assert len(dict(found)) == len(found)
    return dict(found)


def rule(name: str, parameter: torch.Tensor) -> tuple[float, float]:
    """The papers': decay^(depth + 1 − i), and no weight decay on what is 1-D or belongs to a place."""
    block = re.match(r'backbone\.layers\.(\d+)\.', name)
    embedding = re.match(r'backbone\.(patch_embed\.|pos_embed|cls_token)', name)
    layer = int(block[1]) + 1 if block else 0 if embedding else DEPTH + 1
    plain = parameter.ndim == 1 or re.search(r'pos_embed|cls_token|relative_position_bias_table', name)
    return RATE * DECAY ** (DEPTH + 1 - layer), 0.0 if plain else 0.05


@pytest.mark.parametrize('scope', KINDS)
def test_layer_decay__is_the_papers_rule_for_every_parameter(scope):
    model = build(scope)
    wrapper = optimise(model, scope)
    found = settings(model, wrapper)
    assert set(found) == {name for name, _ in model.named_parameters()}
    outside = {name.split('.')[0] for name in found} - {'backbone'}
    assert {'mmpretrain': {'head'}, 'mmdet': {'neck', 'rpn_head', 'roi_head'}}.get(
        scope, {'neck', 'decode_head', 'auxiliary_head'}
    ) == outside
    for name, parameter in model.named_parameters():
        assert found[name] == pytest.approx(rule(name, parameter)), name
    assert len(wrapper.optimizer.param_groups) == 2 * (DEPTH + 2)  # not one for every tensor
    assert [group['layer'] for group in wrapper.optimizer.param_groups[1:-1:2]] == [
        'embedding',
        *map('block {}'.format, range(1, 5)),
    ]


@pytest.mark.parametrize('size', ['base-p16_8xb128-coslr-100e', 'large-p16_8xb128-coslr-50e'])
def test_layer_decay__is_mmpretrains_constructor_with_the_hosts_recipe(size):
    """Rates to the last bit; the configs that take mmpretrain's recipe did not change when they took ours."""
    host = Config.fromfile(_host(size)).optim_wrapper
    model = build('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = settings(model, build_optim_wrapper(model, host))
    ours = optimise(model, rate=host.paramwise_cfg.layer_decay_rate, optimizer=host.optimizer)
    assert settings(model, ours) == theirs


def _host(size: str) -> str:
    import mmpretrain

    return f'{mmpretrain.__path__[0]}/.mim/configs/mae/benchmarks/vit-{size}_in1k.py'


def test_layer_decay__other_prefix_tokens_and_windows():
    model = build('mmpretrain', relative_position=None, distillation_token=True, num_registers=2)
    found = settings(model, optimise(model))
    for name in ('cls_token', 'dist_token', 'register_tokens', 'pos_embed'):
        assert found[f'backbone.{name}'] == (RATE * DECAY ** (DEPTH + 1), 0.0)
    model = build('mmdet', window_size=2)
    found = settings(model, optimise(model))
    assert all(found[name] == pytest.approx(rule(name, parameter)) for name, parameter in model.named_parameters())


def test_layer_decay__frozen_parameters_are_left_out():
    model = build('mmpretrain', frozen_patch_embed=True)
    model.backbone.layers[0].requires_grad_(False)
    found = settings(model, optimise(model))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert len(frozen) > 10 and set(found) == {name for name, _ in model.named_parameters()} - frozen


def test_layer_decay__one_is_the_same_rate_everywhere():
    model = build('mmpretrain')
    assert {rate for rate, _ in settings(model, optimise(model, rate=1.0)).values()} == {RATE}


@pytest.mark.parametrize(
    'schedule',
    [
        [dict(type='LinearLR', start_factor=1e-3, begin=0, end=5), dict(type='CosineAnnealingLR', eta_min_ratio=0.01)],
        [dict(type='LinearLR', start_factor=1e-6, begin=0, end=5), dict(type='PolyLR', power=1.0, eta_min=0.0)],
        [dict(type='LinearLR', start_factor=1e-3, begin=0, end=5), dict(type='MultiStepLR', milestones=[8, 11])],
    ],
    ids=['cosine', 'poly', 'steps'],
)
def test_schedules__keep_the_ratio_of_the_layers_at_every_step(schedule):
    """Each group follows the shape of the whole, from its own peak; the rate that is logged as `base_lr` is the heads'."""
    model = build('mmpretrain')
    wrapper = optimise(model)
    for entry in schedule[1:]:
        entry.update(begin=5, end=20)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = [PARAM_SCHEDULERS.build(dict(entry, by_epoch=False, optimizer=wrapper)) for entry in schedule]
    peaks, heads = [group['initial_lr'] for group in wrapper.optimizer.param_groups], []
    assert peaks == pytest.approx([RATE * DECAY ** (DEPTH + 1 - i // 2) for i in range(2 * (DEPTH + 2))])
    for _ in range(20):
        rates = [group['lr'] for group in wrapper.optimizer.param_groups]
        heads.append(rates[-1])
        assert rates == pytest.approx([peak * rates[-1] / RATE for peak in peaks], abs=1e-18)
        assert wrapper.get_lr()['base_lr'] == pytest.approx([rates[-1]])
        wrapper.step()
        for step in steps:
            step.step()
    assert max(heads) == pytest.approx(RATE) and heads[0] < 2e-3 * RATE and heads[-1] < 0.11 * RATE


def test_layer_decay__state_of_the_optimiser_goes_through_a_file(tmp_path):
    """Stopped after two steps and resumed is three steps on end, bit for bit."""

    def step(model, wrapper, seed):
        torch.manual_seed(seed)
        images = torch.randn(2, 3, 24, 24)
        wrapper.update_params(model.head(model.backbone(images)).square().sum())

    torch.manual_seed(0)
    model = build('mmpretrain', drop_path_rate=0.0)
    wrapper = optimise(model)
    for seed in (1, 2):
        step(model, wrapper, seed)
    torch.save(dict(state_dict=model.state_dict(), optimizer=wrapper.state_dict()), tmp_path / 'a.pth')
    step(model, wrapper, 3)
    again = build('mmpretrain', drop_path_rate=0.0)
    resumed = optimise(again)
    saved = read_checkpoint(tmp_path / 'a.pth')  # without running anything in it
    again.load_state_dict(saved['state_dict'])
    resumed.load_state_dict(saved['optimizer'])
    step(again, resumed, 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.parameters(), model.parameters(), strict=True))
    assert [g['layer'] for g in resumed.optimizer.param_groups] == [g['layer'] for g in wrapper.optimizer.param_groups]


def test_layer_decay__logs_a_table(tmp_path):
    log = tmp_path / 'run.log'
    logger = MMLogger.get_instance(f'layer_decay_{tmp_path.name}', log_file=str(log))
    model = build('mmpretrain')
    optimise(model)
    for handler in logger.handlers:
        handler.flush()
    lines = [[cell.strip() for cell in line.split('│')[1:-1]] for line in log.read_text().splitlines() if '│' in line]
    assert len(lines) == 2 * (DEPTH + 2)
    embedding = model.backbone.patch_embed.projection.weight
    assert lines[0] == ['embedding', '1', f'{embedding.numel():,}', f'{RATE * DECAY**5:.4g}', '0.05']
    assert lines[-1][0] == 'heads, norms' and lines[-1][3:] == ['0.001', '0']
    numbers = sum(int(line[2].replace(',', '')) for line in lines)
    assert numbers == sum(parameter.numel() for parameter in model.parameters())
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    assert [column.header for column in group_table(plain).columns] == ['tensors', 'parameters', 'rate', 'weight decay']


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(paramwise_cfg=dict(decay_rate=0.5)), 'takes layer_decay_rate and nothing else'),
        (dict(paramwise_cfg=dict(layer_decay_rate=0.5, norm_decay_mult=0.0)), '_delete_=True'),
        (dict(paramwise_cfg=None), r'paramwise_cfg=\{\}: LayerDecayConstructor takes layer_decay_rate'),
        (dict(paramwise_cfg=dict(layer_decay_rate=1.5)), r'layer_decay_rate=1\.5: it must lie in \(0, 1\]'),
        (dict(paramwise_cfg=dict(layer_decay_rate=0)), 'layer_decay_rate=0: it must lie'),
        (dict(optimizer=dict(type='AdamW', lr=1e-3)), r"it needs \['weight_decay'\]"),
    ],
)
def test_layer_decay__wrong_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        optimise(nn.Linear(2, 2), **changes)


def test_layer_decay__a_backbone_without_layers_is_refused():
    model = nn.Module()
    with pytest.raises(ValueError, match='Module has the backbone NoneType, which has no get_layer_depth'):
        optimise(model)
    model.backbone = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='backbone Linear, which has no get_layer_depth.*Use a ViT'):
        optimise(model)


def test_layer_decay__plain_name_in_mmpretrain():
    from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS

    assert OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayConstructor') is LayerDecayConstructor
