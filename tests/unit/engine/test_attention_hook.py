"""Kernels of attention: timed in the run's sizes, applied to each network, and kept by checkpoints."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.networks import ARCH, DBOT
from mmengine.logging import MessageHub, MMLogger
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode

from mkd_plugin.engine import AttentionHook, CompileHook
from mkd_plugin.engine import attention as hooks
from mkd_plugin.models.vit.attention import Attention, attend, attend_by_flex

BIASED = dict(
    backbone=dict(type='MaskTokenViT', arch=ARCH, img_size=16, patch_size=4, relative_position='shared'),
    objectives=dict(feature=dict(DBOT['objectives']['feature'], head=dict(type='LinearHead'), region='hidden')),
)


def runner_of(model: nn.Module) -> SimpleNamespace:
    """What the hook reads of a runner."""
    return SimpleNamespace(
        model=model.float().train(),
        message_hub=MessageHub('attention'),
        logger=MMLogger('attention', log_level='ERROR'),
        optim_wrapper=SimpleNamespace(optim_context=lambda model: nullcontext()),
        train_dataloader=SimpleNamespace(batch_size=4),
    )


class Kernels(TorchFunctionMode):
    """Notes head width and whether the math kernel was allowed alone, for each fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, bool]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.found.add((args[0].shape[-1], not torch.backends.cuda.flash_sdp_enabled()))
        return func(*args, **(kwargs or {}))


def step(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    loss = model.loss(torch.randn(4, 3, 16, 16))['loss_feature']
    loss.backward()
    return [loss.detach(), *[p.grad for p in model.parameters()]]


def test_attention_hook__keeps_the_fastest_of_each_network(build_distiller, monkeypatch):
    """Here flash attention for the student and its teacher, math for the decoder, whose heads have 8 channels, too."""

    def times(shape, trained, device):
        measured.append((shape, trained))
        return dict(MATH=1.0, FLASH_ATTENTION=2.0) if shape[1] == 2 else dict(MATH=2.0, FLASH_ATTENTION=1.0)

    measured: list = []
    monkeypatch.setattr(hooks, 'times_of', times)
    head = dict(DBOT['objectives']['feature']['head'], width=32)
    runner = runner_of(build_distiller(objective=dict(head=head)))
    wanted = step(copy.deepcopy(runner.model))
    AttentionHook().before_train(runner)
    assert measured == [((4, 4, 5, 8), True), ((4, 2, 17, 16), True), ((4, 4, 17, 8), False)]
    with Kernels() as kernels:
        found = step(runner.model)
    assert kernels.found == {(8, False), (16, True)}
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    AttentionHook().before_train(runner)  # a resumed run, whose message hub comes from the checkpoint
    assert len(measured) == 3


def test_attention_hook__times_what_this_device_has_without_drawing_the_runs_numbers(build_distiller):
    runner, state = runner_of(build_distiller()), torch.get_rng_state()
    AttentionHook().before_train(runner)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(runner.message_hub.get_info('attention_kernels').values()) <= {'MATH', 'FLASH_ATTENTION'}
    assert all('attend' in vars(one) for one in runner.model.modules() if isinstance(one, Attention))
    for trained in (True, False):
        assert hooks.times_of((2, 2, 5, 8), trained, torch.device('cpu')).keys() == {'MATH', 'FLASH_ATTENTION'}
    runner = runner_of(build_distiller(**BIASED))
    AttentionHook().before_train(runner)
    assert not runner.message_hub.get_info('attention_kernels')


def test_attention_hook__composes_with_compiled_blocks(build_distiller):
    torch._dynamo.reset()
    counters.clear()
    runner = runner_of(build_distiller())
    eager = step(copy.deepcopy(runner.model))
    AttentionHook().before_train(runner)
    CompileHook(backend='aot_eager').before_train(runner)
    torch.testing.assert_close(step(runner.model), eager, rtol=1e-4, atol=1e-6)
    assert counters['aot_autograd']['ok'] >= 1 and not counters['graph_break']


@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
@pytest.mark.parametrize('some', [False, True], ids=['all rows', 'some rows'])
def test_attend_by_flex__is_attention_with_a_bias(monkeypatch, some):
    """Values and gradients, that of the bias included, of the unfused form; tests/gpu has the compiled one."""
    monkeypatch.setattr(flex_attention, '_validate_device', lambda *qkv: None)  # a CPU has no fused gradients
    rows = torch.stack([torch.randperm(7)[:3] for _ in range(2)]) if some else None
    inputs = [torch.randn(2, 3, 3 if some else 7, 16), *torch.randn(2, 2, 3, 7, 16), torch.randn(1, 3, 7, 7)]
    results = []
    for compute in (attend, partial(attend_by_flex, flex_attention.flex_attention)):
        q, k, v, bias = given = [value.clone().requires_grad_() for value in inputs]
        out = compute(q, k, v, bias, rows)
        results.append([out, *torch.autograd.grad(out.square().sum(), given)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
def test_attention_hook__flex_computes_the_same_in_every_layer_of_the_student(build_distiller, monkeypatch):
    """On a CPU, as if it were a GPU, and not compiled."""
    use_flex, compiled, flex = hooks.use_flex, torch.compile, flex_attention.flex_attention
    monkeypatch.setattr(flex_attention, '_validate_device', lambda *qkv: None)
    monkeypatch.setattr(torch, 'compile', lambda what, **options: what if what is flex else compiled(what, **options))
    monkeypatch.setattr(hooks, 'use_flex', lambda student, device: use_flex(student, torch.device('cuda')))
    runner = runner_of(build_distiller(**BIASED))
    wanted = step(copy.deepcopy(runner.model))
    AttentionHook(flex=True).before_train(runner)
    layers = {name: module for name, module in runner.model.named_modules() if isinstance(module, Attention)}
    changed = {name for name, layer in layers.items() if getattr(layer.attend, 'func', None) is attend_by_flex}
    assert changed == {name for name in layers if name.startswith('backbone.')} != set()
    torch.testing.assert_close(step(runner.model), wanted, rtol=1e-4, atol=1e-5)


def test_attention_hook__refuses(build_distiller):
    with pytest.raises(ValueError, match='AttentionHook: Linear is no MaskedDistiller. Remove the hook'):
        AttentionHook().before_train(runner_of(nn.Linear(1, 1)))
    for changes, found in ((BIASED, 'shared'), ({}, None)):
        with pytest.raises(
            ValueError,
            match=f'needs a relative position bias and CUDA, not relative_position={found} on cpu. Leave it out',
        ):
            AttentionHook(flex=True).before_train(runner_of(build_distiller(**changes)))
