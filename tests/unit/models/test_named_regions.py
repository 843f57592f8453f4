"""Regions that a masking declares: I-JEPA as one masking and one head, without a change to the core."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.doubles import registered
from helpers.networks import VIT, hidden_masks, scatter_weights
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F

from mkd_plugin.models.protocols import Head, Masking, Progress
from mkd_plugin.models.vit import Block, sincos_positions
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionSpec, TokenMask, take

ARCH = VIT['arch']


@pytest.fixture(autouse=True)
def doubles():
    """Register the test doubles of this file for one test."""
    with registered(ConcatenatedTargets, BlockPredictor):
        yield


# I-JEPA: block targets, a predictor that runs once per block, a momentum teacher.
class ConcatenatedTargets(Masking):
    """Two targets of 2 × 2 patches per image, which may overlap; four other patches are the context."""

    def __init__(self, *, student):
        super().__init__(student=student)
        self.grid, self.num_visible = student.grid, 4

    def regions(self):
        return {**super().regions(), 'targets': RegionSpec('targets')}

    def forward(self, images_BCHW, teacher_features):
        batch, (rows, columns) = len(images_BCHW), self.grid
        corners_BT = torch.randint(rows - 1, (batch, 2)) * columns + torch.randint(columns - 1, (batch, 2))
        offsets = torch.tensor([0, 1, columns, columns + 1])
        targets_BR = (corners_BT[:, :, None] + offsets).flatten(1)
        noise_BL = torch.rand(batch, self.num_patches).scatter(1, targets_BR, 2.0)
        mask = TokenMask.from_kept(noise_BL.argsort(1)[:, : self.num_visible], self.num_patches)
        return replace(mask, regions={'targets': targets_BR})


class BlockPredictor(Head):
    """I-JEPA's predictor: the context and mask tokens at the positions of one target; one pass per target."""

    reaches_hidden, predicts_cls = True, False

    def __init__(self, *, in_width, out_width, grid, targets, width=16):
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.targets = targets
        self.embed, self.predict = nn.Linear(in_width, width), nn.Linear(width, out_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer('pos_embed', sincos_positions(grid, width, num_prefix=0))
        self.block = Block(width=width, num_heads=2)

    def forward(self, features, taps, region):
        kept_BV = features.mask.ids_keep_BV
        context = self.embed(features.tokens(taps[0])[:, features.num_prefix :])
        positions = self.pos_embed.expand(len(context), -1, -1)
        context = context + take(positions, kept_BV)
        blocks = []
        for ids_Br in region.ids_BR.chunk(self.targets, dim=1):
            queries = self.mask_token + take(positions, ids_Br)
            tokens, _ = self.block(torch.cat([context, queries], 1))
            blocks.append(self.predict(tokens[:, kept_BV.shape[1] :]))
        return torch.cat(blocks, 1)


I_JEPA = dict(
    backbone=dict(type='VisibleViT', **VIT),
    masking=dict(type='ConcatenatedTargets'),
    teachers=dict(ema=dict(type='MomentumTeacher', momentum=dict(type='LinearRamp', start=0.996, end=1.0))),
    objectives=dict(
        feature=dict(
            teacher='ema',
            tap='output',
            normalize=dict(type='TokenStandardize', unbiased=False),
            student='output',
            head=dict(type='BlockPredictor', targets=2),
            loss=dict(type='SmoothL1Loss', beta=1.0),
            region='targets',
        )
    ),
)


def test_i_jepa__is_one_masking_and_one_head(images):
    model = MODELS.build(dict(type='MaskedDistiller', **I_JEPA)).double()
    model.begin_training(Progress(0, 100))
    scatter_weights(model)
    torch.manual_seed(3)
    mask = model.masking(images, None)
    torch.manual_seed(3)
    found = model.loss(images)['loss_feature']

    teacher, head = model.teachers['ema'].network, model.objectives['feature'].heads[0]
    tokens_BLD = teacher(images).tokens('output')[:, 1:]
    target_BLD = F.layer_norm(tokens_BLD, tokens_BLD.shape[-1:], eps=1e-6)
    context = head.embed(model.backbone(images, mask).tokens('output')[:, 1:])
    losses = []
    for image in range(3):
        seen = context[image] + head.pos_embed[0, mask.ids_keep_BV[image]]
        for ids in mask.regions['targets'][image].view(2, 4):
            asked = head.mask_token[0] + head.pos_embed[0, ids]
            predicted = head.predict(head.block(torch.cat([seen, asked])[None])[0][0, 4:])
            losses.append(F.smooth_l1_loss(predicted, target_BLD[image, ids]))
            assert not set(ids.tolist()) & set(mask.ids_keep_BV[image].tolist())
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)

    found.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before, student = teacher.cls_token.clone(), model.backbone.cls_token
    model.after_step(Progress(50, 100))
    torch.testing.assert_close(teacher.cls_token, 0.998 * before + 0.002 * student.detach(), rtol=1e-12, atol=1e-12)


def test_region__unknown_names_are_refused_with_those_the_masking_declares():
    objective = {'feature': {**I_JEPA['objectives']['feature'], 'region': 'target'}}
    with pytest.raises(
        ValueError, match=r"region='target': use one of 'hidden', 'visible', 'all', 'targets', optionally with"
    ):
        MODELS.build(dict(type='MaskedDistiller', **{**I_JEPA, 'objectives': objective}))


def test_region__a_given_mask_cannot_stand_for_a_masking_that_declares_more(images):
    model = MODELS.build(dict(type='MaskedDistiller', **I_JEPA)).double()

    samples = []
    for row in hidden_masks():
        sample = DataSample()
        sample.set_field(row, 'mask')
        samples.append(sample)
    with pytest.raises(ValueError, match='ConcatenatedTargets draws several or declares further regions'):
        model.loss(images, samples)
