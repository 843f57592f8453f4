"""The student that sees every patch, and fine-tuning with relative positions."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import ARCH, scatter_weights

from mkd_plugin.models.students import ClassifierViT, MaskTokenViT, PlainViT
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask

RELATIVE = dict(arch=ARCH, img_size=16, patch_size=4, position='none', relative_position='shared')
PLAIN = dict(
    type='MaskedDistiller',
    backbone=dict(type='PlainViT', **RELATIVE),
    masking=dict(type='NoMasking'),
    teachers=dict(teacher=dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=1)),
    objectives=dict(
        feature=dict(
            teacher='teacher',
            tap='output',
            student='output',
            head=dict(type='LinearHead'),
            loss=dict(type='SmoothL1Loss', beta=2.0),
            region='all+cls',
        )
    ),
)


def test_plain_vit__under_no_masking_is_the_network_without_a_mask(images):
    student = scatter_weights(PlainViT(**RELATIVE).double())
    mask = TokenMask.from_hidden(torch.zeros(3, 16, dtype=torch.bool), 16)
    torch.testing.assert_close(student(images, mask).tokens('output'), student(images).tokens('output'))


def test_plain_vit__refuses_a_mask_that_hides_something(images):
    hidden_BL = torch.zeros(3, 16, dtype=torch.bool)
    hidden_BL[:, 0] = True
    student = PlainViT(**RELATIVE).double()
    for mask in (TokenMask.from_hidden(hidden_BL, 15), TokenMask(hidden_BL)):
        with pytest.raises(ValueError, match='sees every patch, but the masking hides some. Use NoMasking'):
            student(images, mask)


def test_plain_vit__every_parameter_learns_without_masking(images):
    model = scatter_weights(MODELS.build(PLAIN).double())
    model.loss(images)['loss_feature'].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_plain_vit__has_the_tensors_of_a_mask_token_vit_but_the_token():
    assert {*MaskTokenViT(**RELATIVE).state_dict()} - {*PlainViT(**RELATIVE).state_dict()} == {'mask_token'}


def test_bootstrapped_teacher__copies_a_student_with_relative_positions(images):
    """The index of offsets is a buffer that is not saved, so copying must not require it."""
    cfg = {
        **PLAIN,
        'backbone': dict(type='MaskTokenViT', **RELATIVE),
        'teachers': dict(teacher=dict(type='BootstrappedTeacher', start='student')),
        'masking': dict(type='BlockMasking', ratio=0.4, min_block=2),
    }
    model = scatter_weights(MODELS.build(cfg).double())
    teacher = model.teachers['teacher']
    teacher.promote(model.backbone)
    found = teacher(images, None, ('output',)).tokens('output')
    torch.testing.assert_close(found, model.backbone.eval()(images).tokens('output'))


def test_classifier__frozen_patch_projection_is_the_only_frozen_part():
    frozen = [
        n for n, p in ClassifierViT(**RELATIVE, frozen_patch_embed=True).named_parameters() if not p.requires_grad
    ]
    assert frozen == ['patch_embed.projection.weight', 'patch_embed.projection.bias']
    assert all(p.requires_grad for p in ClassifierViT(**RELATIVE).parameters())
