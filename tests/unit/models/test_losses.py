"""Losses, normalisations and the regrouping of relations against explicit loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.networks import ARCH, scatter_weights
from mmpretrain.structures import DataSample

from mkd_plugin.models.heads import RegroupedRelations
from mkd_plugin.models.losses import CosineLoss, TokenInfoNCE
from mkd_plugin.models.targets import BatchStandardize
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import QueryKey, Region, TokenFeatures, TokenMask, take


def pair():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 3, 5, dtype=torch.float64, generator=generator) for _ in range(2))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_cosine_loss__equals_loops():
    prediction, target = pair()
    wanted = [[1 - cosine(prediction[b, r], target[b, r]) for r in range(3)] for b in range(2)]
    torch.testing.assert_close(CosineLoss()(prediction, target), torch.tensor(wanted, dtype=torch.float64))


def test_token_info_nce__equals_loops():
    prediction, target = pair()
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for b in range(2):
        for r in range(3):
            scores = [math.exp(cosine(prediction[b, r], target[b, s]) / 0.2) for s in range(3)]
            wanted[b, r] = -math.log(scores[r] / sum(scores))
    torch.testing.assert_close(TokenInfoNCE(temperature=0.2)(prediction, target), wanted)


def test_token_info_nce__temperature_must_be_positive():
    with pytest.raises(ValueError, match='temperature=0: it must be positive'):
        TokenInfoNCE(temperature=0)


RAGGED_BL = torch.stack([torch.arange(16) % 3 == 1, torch.arange(16) < 2, torch.arange(16) < 0])


def test_token_info_nce__padding_is_no_negative():
    """Each image's loss is that of its hidden tokens alone; an image without any adds nothing, and no NaN."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 16, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    prediction.requires_grad_()
    loss = TokenInfoNCE(temperature=0.2)
    alone = torch.cat([loss(prediction[i : i + 1, row], target[i : i + 1, row])[0] for i, row in enumerate(RAGGED_BL)])
    for mask in (TokenMask(RAGGED_BL), TokenMask(RAGGED_BL, most_hidden=7)):
        region = Region.parse('hidden').tokens(mask)
        values = loss(take(prediction, region.ids_BR), take(target, region.ids_BR), region=region)
        torch.testing.assert_close(region.mean(values), alone.mean())
        (gradient,) = torch.autograd.grad(region.mean(values), prediction)
        assert gradient.isfinite().all()
        assert not gradient[~RAGGED_BL].any()


def test_batch_standardize__padding_does_not_count():
    target = torch.randn(3, 16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = BatchStandardize()(target[RAGGED_BL])
    for mask in (TokenMask(RAGGED_BL), TokenMask(RAGGED_BL, most_hidden=7)):
        region = Region.parse('hidden').tokens(mask)
        found = BatchStandardize()(take(target, region.ids_BR), region=region)
        torch.testing.assert_close(found[region.weight_BR.bool()], wanted)
        assert found.isfinite().all()
    nothing = Region.parse('hidden').tokens(TokenMask(torch.zeros(3, 16, dtype=torch.bool)))
    assert BatchStandardize()(target, region=nothing).isfinite().all()


CONTRASTIVE = dict(  # ConMIM's row of the unified view
    type='MaskedDistiller',
    backbone=dict(type='MaskTokenViT', arch=ARCH, img_size=56, patch_size=4),
    masking=dict(type='BlockMasking', num_hidden=78),
    teachers=dict(teacher=dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=1)),
    objectives=dict(
        feature=dict(
            teacher='teacher',
            tap='output',
            normalize=dict(type='BatchStandardize'),
            student='output',
            head=dict(type='LinearHead'),
            loss=dict(type='TokenInfoNCE', temperature=0.1),
            region='hidden',
        )
    ),
)


def test_contrastive_row__given_mask_reproduces_the_drawn_one():
    model = scatter_weights(MODELS.build(CONTRASTIVE).double().eval())
    images = torch.randn(8, 3, 56, 56, dtype=torch.float64)
    torch.manual_seed(0)
    hidden_BL = model.masking(images, None).hidden_BL
    assert len(hidden_BL.sum(1).unique()) > 1, 'the masks must differ in size'
    torch.manual_seed(0)
    drawn = model.loss(images)['loss_feature']
    given = model.loss(images, [DataSample().set_mask(row) for row in hidden_BL])['loss_feature']
    torch.testing.assert_close(given, drawn, rtol=1e-12, atol=0)


def test_batch_standardize__equals_torchs_batch_norm():
    target, _ = pair()
    wanted = torch.nn.functional.batch_norm(target.flatten(0, 1), None, None, training=True, eps=1e-5).view(2, 3, 5)
    torch.testing.assert_close(BatchStandardize()(target), wanted)


def test_regrouped_relations__equal_explicit_products_of_channel_groups():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = TokenMask.from_kept(torch.tensor([[0, 3], [1, 2]]), 4)
    region = Region.parse('visible+cls').tokens(mask)
    features = TokenFeatures({'logit:0': QueryKey(q, k, scale=6**-0.5)}, num_prefix=1)
    head = RegroupedRelations(in_width=2, out_width=3, grid=(2, 2))
    found = head(features, ('logit:0',), region)
    rows = [[0, 1, 4], [0, 2, 3]]
    for image in range(2):
        channels_q, channels_k = (x[image].transpose(0, 1).reshape(5, 12)[rows[image]] for x in (q, k))
        for head_number in range(3):
            group = slice(4 * head_number, 4 * head_number + 4)
            wanted = channels_q[:, group] @ channels_k[:, group].T / 2
            torch.testing.assert_close(found[image, head_number], wanted)


def test_regrouped_relations__width_that_cannot_be_cut():
    relation = QueryKey(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match='8 channels of queries cannot be split into 3 heads'):
        relation.regroup(3)
