"""The examples of docs/tutorials/own_parts.md are complete, short, and train; their mistakes give the messages of the page."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from helpers.house import ROOT

from mkd_plugin.models.objective import GUIDE
from mkd_plugin.registry import MODELS

PAGE = (ROOT / GUIDE).read_text()
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', PAGE, re.M | re.S)
EXAMPLES = [text for kind, text in BLOCKS if kind == 'python']
MESSAGES = [line for kind, text in BLOCKS[1:] if kind == 'text' for line in text.splitlines()]
ARCH = dict(width=16, depth=1, num_heads=2)
METHOD = dict(
    type='MaskedDistiller',
    data_preprocessor=dict(mean=[128] * 3, std=[64] * 3),
    backbone=dict(type='NoisyViT', arch=ARCH, img_size=16, patch_size=4),
    masking=dict(type='HalfMasking'),
    teachers=dict(teacher=dict(type='ConvTeacher', channels=8)),
    objectives=dict(
        feature=dict(
            teacher='teacher',
            tap='output',
            student='output',
            normalize=dict(type='RunningCenter'),
            head=dict(type='GatedHead'),
            loss=dict(type='HuberCosine'),
            region='visible',
        )
    ),
)
EXTRA = """
@MODELS.register_module()
class MeanLoss(nn.Module):
    def forward(self, prediction, target):
        return F.mse_loss(prediction, target)

@MODELS.register_module()
class NarrowHead(Head):
    def __init__(self, *, out_width, grid):
        super().__init__(in_width=1, out_width=out_width, grid=grid)
"""
# what each message of the page is said to: the change of the method above
MISTAKES = [
    {'region': 'visible+cls'},
    {'normalize': None, 'normalize_prediction': True},
    {'head': dict(type='NarrowHead')},
    {'head': dict(type='Linear')},
    {'region': 'hidden'},
    {'loss': dict(type='MeanLoss')},
    {'loss': dict(type='MSELoss', reduction='mean')},
    {'loss': dict(type='HuberCosine', share='half')},
    {'region': 'border'},
    {'backbone': dict(METHOD['backbone'], relative_position='shared')},
]


@pytest.fixture(autouse=True)
def parts():
    """Run the page's blocks in order, as one module, and forget its classes afterwards."""
    registries = (MODELS.module_dict, MODELS._mirror.module_dict)
    known = [set(registry) for registry in registries]
    names = {'__name__': 'my_parts'}
    exec('\n'.join([*EXAMPLES, EXTRA]), names)
    yield names
    for registry, before in zip(registries, known, strict=True):
        for name in set(registry) - before:
            del registry[name]


def test_examples__are_complete_and_short():
    assert re.findall(r'^## (\w+)', PAGE, re.M) == ['Teacher', 'Normalization', 'Head', 'Loss', 'Masking', 'Student']
    assert len(EXAMPLES) == 7 and max(text.count('\n') for text in EXAMPLES) <= 30


def test_examples__train_together(parts):
    """All six in one method: finite gradients in every parameter, a target that the teacher and N compute."""
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(METHOD))
    images = torch.randn(4, 3, 16, 16)
    first = model.loss(images)
    assert first['hidden_share'] == 0.5
    first['loss_feature'].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    mask = model.masking(images, None)
    assert (mask.hidden_BL.view(4, 2, 8).all(2).sum(1) == 1).all()  # one whole half of each image
    center = model.objectives['feature'].normalizations[0].center.clone()
    assert center.abs().sum() > 0 and 'objectives.feature.normalizations.0.center' in model.state_dict()
    model.eval().loss(images)
    assert torch.equal(center, model.objectives['feature'].normalizations[0].center)


def test_loss__is_the_equation_written_out(parts):
    prediction, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    found = parts['HuberCosine'](share=0.25)(prediction, target)
    angle = 1 - (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))
    size = (prediction - target).abs()
    huber = torch.where(size < 1, size**2 / 2, size - 0.5).mean(-1)
    torch.testing.assert_close(found, 0.25 * angle + 0.75 * huber)


@pytest.mark.parametrize('number', range(len(MISTAKES)), ids=[' '.join(mistake) for mistake in MISTAKES])
def test_mistake__is_refused_as_the_page_says(number):
    method, change = copy.deepcopy(METHOD), MISTAKES[number]
    (method if 'backbone' in change else method['objectives']['feature']).update(change)
    with pytest.raises(ValueError) as error:
        MODELS.build(method)
    assert str(error.value) == MESSAGES[number]
    assert len(MESSAGES) == len(MISTAKES)
