"""Compiled training: few compilations, the same names and losses, and one message where there is no compiler."""

from __future__ import annotations

import pytest
import torch
from helpers.networks_modern import DINOV3
from mmengine.logging import MMLogger
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from mkd_plugin import get_config
from mkd_plugin.engine import CompileHook
from mkd_plugin.engine.compile import compile_model
from mkd_plugin.models.protocols import Progress
from mkd_plugin.preflight.config import load_config
from mkd_plugin.registry import MODELS

DIGITS = {
    'dbot': 'dbot/dbot_digits',
    'maskdistill': 'maskdistill/maskdistill_digits',
    'dmae': 'dmae/dmae_digits',
    'hybrid': 'hybrid_distill/hybrid_digits',
}


class RunnerDouble:
    """What the hook reads of a runner."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.logger = model, MMLogger.get_instance('compile', log_level='ERROR')


# Options that change what blocks compute.
OPTIONS = dict(
    selective=dict(activation_checkpointing='selective'), precision=dict(residual='bfloat16', teacher='fp8'),
    parts=dict(DINOV3, activation='swiglu', inner_norm='both'),
)  # fmt: skip


def build(
    method: str, selective: dict | None = None, precision: dict | None = None, parts: dict | None = None
) -> nn.Module:
    cfg, arch = get_config(DIGITS[method]), dict(width=32, depth=12, num_heads=4)
    cfg.model.backbone.update(arch=arch, drop_path_rate=0.2, **(selective or {}), **(parts or {}))
    cfg.model.precision = precision
    if selective:
        cfg.model.objectives.feature.head.update(selective)
    for teacher in cfg.model.teachers.values():
        if 'arch' in teacher:
            teacher.arch = arch
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).train()
    model.begin_training(Progress(0, 10))
    return model


def losses(model: nn.Module, steps: int, amp: bool = False) -> list[float]:
    found = []
    for step in range(steps):
        if step == 2 and 'boot' in model.teachers:
            model.teachers['boot'].promote(model.backbone)
            model.reset_student()
        torch.manual_seed(step)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            results = model.loss(torch.randn(4, 3, 24, 24))
        total = sum(value for name, value in results.items() if name.startswith('loss_'))
        total.backward()
        found.append(total.item())
    return found


def compilations(model: nn.Module, amp: bool = False) -> set[int]:
    """Numbers of compilations after 2, 3, 4 and 8 steps, the last four with a promotion."""
    torch._dynamo.reset()
    counters.clear()
    counted = CompileCounter()
    CompileHook(what='blocks', backend=counted).before_train(RunnerDouble(model))
    before, compiled = counted.frame_count, []
    for steps in (2, 1, 1, 4):
        losses(model, steps, amp)
        compiled.append(counted.frame_count - before)
    assert not counters['graph_break']
    return set(compiled)


@pytest.mark.parametrize('method', DIGITS)
def test_compile_hook__blocks_share_few_compilations_and_a_promotion_needs_none(method):
    """Twelve blocks with different rates of drop path, teachers, and a decoder."""
    model = build(method)
    names = set(model.state_dict())
    (compiled,) = compilations(model)
    assert 1 <= compiled <= 5 and set(model.state_dict()) == names


@pytest.mark.parametrize('option', OPTIONS)
def test_compile_hook__options_of_memory_and_precision_need_no_more(option):
    (compiled,) = compilations(build('dbot', **{option: OPTIONS[option]}), amp=option == 'precision')
    assert 1 <= compiled <= 5


@pytest.mark.parametrize('option', OPTIONS)
def test_compile_hook__compiled_is_eager_with_options(option):
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build('dbot', **{option: OPTIONS[option]})
        if compiled:
            CompileHook(backend='aot_eager').before_train(RunnerDouble(model))
        loss, amp = losses(model, 1, option == 'precision'), option == 'precision'
        found.append([torch.tensor(loss), *[p.grad for p in model.parameters()]])
    torch.testing.assert_close(*found, rtol=0.05 if amp else 1e-4, atol=1e-3 if amp else 1e-6)


@pytest.mark.parametrize('what', ['blocks', 'loss'])
def test_compile_hook__compiled_is_eager(what):
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = build('dbot')
    torch.manual_seed(0)
    compiled = build('dbot')
    CompileHook(what=what, backend='aot_eager').before_train(RunnerDouble(compiled))
    assert losses(compiled, 2) == pytest.approx(losses(eager, 2), rel=1e-5)


def test_compile_hook__the_loss_is_compiled_again_after_a_promotion_at_most():
    torch._dynamo.reset()
    model, counted = build('dbot'), CompileCounter()
    CompileHook(what='loss', backend=counted).before_train(RunnerDouble(model))
    before = counted.frame_count
    losses(model, 4)
    assert 1 <= counted.frame_count - before <= 3


def test_compile_hook__says_what_is_missing_before_work_is_lost():
    def broken(graph, inputs):
        raise RuntimeError('Failed to find C compiler. Please specify via CC.')

    torch._dynamo.reset()
    with pytest.raises(
        ValueError, match='does not work on cpu: .*Failed to find C compiler.*Remove the hook, or install'
    ):
        CompileHook(backend=broken).before_train(RunnerDouble(build('dmae')))
    with pytest.raises(ValueError, match='the model has no block of .* Use what=.loss., or remove the hook'):
        compile_model(nn.Linear(2, 2), 'blocks', 'eager')
    with pytest.raises(ValueError, match=r"CompileHook\(what='all'\): use one of \['blocks', 'loss'\]"):
        CompileHook(what='all')


def test_load_config__names_the_hook_instead_of_mmengines_option():
    with pytest.raises(ValueError, match='compile: .*CompileHook'):
        load_config('dbot/dbot_digits', options={'compile': True})
