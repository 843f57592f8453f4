"""Compiled training: few compilations, the same names and losses, and one message where there is no compiler."""

from __future__ import annotations

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from mkd_plugin import get_config
from mkd_plugin.engine import CompileHook
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


def build(method: str) -> nn.Module:
    cfg, arch = get_config(DIGITS[method]), dict(width=32, depth=12, num_heads=4)
    cfg.model.backbone.update(arch=arch, drop_path_rate=0.2)
    for teacher in cfg.model.teachers.values():
        if 'arch' in teacher:
            teacher.arch = arch
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).train()
    model.begin_training(Progress(0, 10))
    return model


def losses(model: nn.Module, steps: int) -> list[float]:
    found = []
    for step in range(steps):
        if step == 2 and 'boot' in model.teachers:
            model.teachers['boot'].promote(model.backbone)
            model.reset_student()
        torch.manual_seed(step)
        results = model.loss(torch.randn(4, 3, 24, 24))
        total = sum(value for name, value in results.items() if name.startswith('loss_'))
        total.backward()
        found.append(total.item())
    return found


@pytest.mark.parametrize('method', DIGITS)
def test_compile_hook__blocks_share_few_compilations_and_a_promotion_needs_none(method):
    """Twelve blocks with different rates of drop path, teachers, and a decoder."""
    torch._dynamo.reset()
    counters.clear()
    model, counted = build(method), CompileCounter()
    names = set(model.state_dict())
    CompileHook(what='blocks', backend=counted).before_train(RunnerDouble(model))
    before, compiled = counted.frame_count, []
    for steps in (2, 1, 1, 4):  # the last four with a promotion
        losses(model, steps)
        compiled.append(counted.frame_count - before)
    assert compiled[0] <= 5 and set(compiled) == {compiled[0]}
    assert not counters['graph_break'] and set(model.state_dict()) == names


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
    with pytest.raises(ValueError, match=r"CompileHook\(what='all'\): use one of \['blocks', 'loss'\]"):
        CompileHook(what='all')


def test_load_config__names_the_hook_instead_of_mmengines_option():
    with pytest.raises(ValueError, match='compile: .*CompileHook'):
        load_config('dbot/dbot_digits', options={'compile': True})
