"""``paramwise_cfg`` of mmengine's default constructor: what it would ignore is refused or named."""

from __future__ import annotations

import pytest
from mmengine.config import ConfigDict
from mmengine.optim import DefaultOptimWrapperConstructor, build_optim_wrapper
from mmengine.registry import MODELS

from mkd_plugin.compat import paramwise
from mkd_plugin.models.students import PlainViT


@pytest.fixture
def model(vit_options):
    return MODELS.build(dict(type='mkd_plugin.PlainViT', position='learned', **vit_options))


def optimise(model, **options):
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1), paramwise_cfg=options)
    return build_optim_wrapper(model, ConfigDict(cfg))


WRONG = {
    'option': (
        dict(norm_decay_mul=0.0),
        r"paramwise_cfg: nothing reads 'norm_decay_mul'\. Did you mean 'norm_decay_mult'",
    ),
    'unknown option': (dict(layer_decay_rate=0.5), r"nothing reads 'layer_decay_rate'.* has custom_keys, bias_lr_mult"),
    'key': (dict(custom_keys={'pos_embd': dict(decay_mult=0.0)}), r"'pos_embd' matches no .* Did you mean 'pos_embed'"),
    'dotted key': (dict(custom_keys={'.cls_tokn': dict(decay_mult=0.0)}), r"'\.cls_tokn' .* Did you mean 'cls_token'"),
    'path': (dict(custom_keys={'patch_embd.projection': dict(lr_mult=0.1)}), r"mean 'patch_embed\.projection'"),
    'no dict': (dict(custom_keys={'pos_embed': 0.1}), r'custom_keys=.*: 0.1}: give a dict for each name, such as'),
    'multiplier': (
        dict(custom_keys={'pos_embed': dict(decay_mul=0.0)}),
        r"has 'decay_mul'\. Did you mean 'decay_mult'",
    ),
}


@pytest.mark.parametrize(('options', 'message'), WRONG.values(), ids=WRONG)
def test_paramwise__misspelt_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        optimise(model, **options)


def test_paramwise__a_part_that_this_network_lacks_is_named(model, monkeypatch):
    """Recipes name parts of other networks, blocks beyond the last, and what hooks read from the groups."""
    said = []
    monkeypatch.setattr(paramwise, 'print_log', lambda text, **_: said.append(text))
    keys = {'.absolute_pos_embed': dict(decay_mult=0.0), 'layers.7.ln1': dict(lr_mult=0.5), 'ln1': dict(fix_lr=True)}
    wrapper = optimise(model, custom_keys=keys, flat_decay_mult=0.0, _scope_='mmdet')
    assert said == [
        'paramwise_cfg: these custom_keys match no parameter and change nothing: .absolute_pos_embed, layers.7.ln1'
    ]
    assert sum(group.get('fix_lr', False) for group in wrapper.optimizer.param_groups) == 2 * 3 + 2


def test_paramwise__derived_constructors_have_their_own_options(model):
    class Derived(DefaultOptimWrapperConstructor):
        pass

    build = Derived(dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0)), dict(decay_type='stage'))
    trained = [weight for group in build(model).optimizer.param_groups for weight in group['params']]
    assert len(trained) == len(list(model.parameters()))


def test_paramwise__a_parameter_of_the_model_itself_begins_with_a_dot(vit_options):
    assert len(optimise(PlainViT(**vit_options), custom_keys={'.cls_token': dict(lr_mult=0.5)}).param_groups) > 1
