"""Block-wise masking against BEiT's sequential procedure, and masking by a teacher's attention."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from helpers.launches import count_launches

from mkd_plugin.models.masking import AttentionMasking, BlockMasking, RandomMasking
from mkd_plugin.models.masking.block import draw_blocks
from mkd_plugin.models.masking.guided import attention_of_cls
from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.models.students import MaskTokenViT, VisibleViT
from mkd_plugin.structures import QueryKey, Region, TokenFeatures


def context_of(cls=MaskTokenViT, side=56):
    network = cls(arch=dict(width=8, depth=1, num_heads=1), img_size=side, patch_size=4, in_channels=1)
    return StudentContext(network, (0.0,), (1.0,))


def masks_of(masking, batch=400):
    torch.manual_seed(0)
    return masking(torch.zeros(batch, 1, 56, 56), None)


def beit_mask(rng, side=14, most=78, smallest=16, min_aspect=0.3):
    """BEiT's generator, one image at a time."""
    mask = np.zeros((side, side), bool)
    while mask.sum() < most:
        remaining = most - mask.sum()
        for _ in range(10):
            area = rng.uniform(smallest, remaining)
            aspect = math.exp(rng.uniform(math.log(min_aspect), -math.log(min_aspect)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= side or width >= side:
                continue
            top, left = rng.randint(0, side - height), rng.randint(0, side - width)
            new = height * width - mask[top : top + height, left : left + width].sum()
            if 0 < new <= remaining:
                mask[top : top + height, left : left + width] = True
                break
        else:
            break
    return mask


def test_block_masking__hides_at_most_the_number_and_says_so():
    mask = masks_of(BlockMasking(student=context_of(), num_hidden=78))
    counts = mask.hidden_BL.sum(1)
    assert (mask.most_hidden, mask.ids_keep_BV) == (78, None)
    assert counts.max() <= 78
    assert counts.min() >= 40  # stops only after ten failures
    assert len(counts.unique()) > 5


def test_block_masking__follows_beits_distribution():
    drawn = masks_of(BlockMasking(student=context_of(), num_hidden=78), 1500).hidden_BL.view(-1, 14, 14).float()
    rng = random.Random(0)
    wanted = torch.from_numpy(np.stack([beit_mask(rng) for _ in range(1500)])).float()

    def statistics(masks):
        edges = (masks[:, 1:] != masks[:, :-1]).float().sum((1, 2))
        counts = masks.sum((1, 2))
        return torch.stack([counts.mean(), counts.std(), edges.mean(), masks[:, 7, 7].mean(), masks[:, 0, 0].mean()])

    # six standard errors of each statistic over 1,500 masks
    assert torch.all((statistics(drawn) - statistics(wanted)).abs() < torch.tensor([0.5, 0.5, 1.8, 0.08, 0.08]))


def test_draw_blocks__one_rectangle_of_the_area_and_aspect():
    """Areas of 16, 32 and 75 patches, height by width of 1, 1/2 and more than the grid; at three corners."""
    aspect = 0.5 + torch.tensor([1.0, 0.5, 6.0]).log() / (2 * math.log(0.1))
    uniform = torch.stack(
        [torch.tensor([0.0, 16 / 59, 1.0]), aspect, torch.tensor([0.0, 0.999, 0.5]), torch.tensor([0.999, 0.0, 0.5])]
    )
    square, flat, too_high = draw_blocks(uniform[None], (14, 14), most=75, min_block=16, min_aspect=0.1)
    assert square[:4, 10:].all() and square.sum() == 16
    assert flat[10:, :8].all() and flat.sum() == 32
    assert too_high.sum() == 0


def test_block_masking__launches_do_not_depend_on_the_batch():
    masking = BlockMasking(student=context_of(), num_hidden=78)
    masks_of(masking, 8)  # the first call may build what later ones reuse
    few, many = (count_launches(lambda batch=batch: masks_of(masking, batch)) for batch in (8, 64))
    assert few == many <= 100


def test_region__hidden_tokens_of_a_ragged_mask_are_weighted_not_the_whole_grid():
    mask = masks_of(BlockMasking(student=context_of(), ratio=0.4), 8)
    region = Region.parse('hidden+cls').tokens(mask)
    assert region.ids_BR.shape == (8, 78)
    loss_BR = torch.rand(8, 79)
    by_hand = sum(
        loss_BR[image, 0]
        + sum(loss_BR[image, 1 + r] for r, i in enumerate(region.ids_BR[image]) if mask.hidden_BL[image, i])
        for image in range(8)
    ) / (mask.hidden_BL.sum() + 8)
    torch.testing.assert_close(region.mean(loss_BR), by_hand)
    for image in range(8):
        hidden = set(mask.hidden_BL[image].nonzero().flatten().tolist())
        counted = region.ids_BR[image][region.weight_BR[image, 1:] == 1]
        assert set(counted.tolist()) == hidden


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'Set exactly one of num_hidden and ratio'),
        (dict(ratio=0.4, num_hidden=78), 'Set exactly one of num_hidden and ratio'),
        (dict(num_hidden=196), 'num_hidden=196 hides 196 of 196'),
        (dict(ratio=0.001), 'ratio=0.001 hides 0 of 196'),
        (dict(num_hidden=10), r'min_block=16: it must lie in \[1, 10\]'),
        (dict(num_hidden=78, min_aspect=2.0), 'min_aspect=2.0 must lie in'),
    ],
)
def test_block_masking__wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        BlockMasking(student=context_of(), **options)


def test_block_masking__student_that_sees_visible_patches_only():
    with pytest.raises(ValueError, match='BlockMasking hides a different number .* Use a MaskTokenViT'):
        BlockMasking(student=context_of(VisibleViT), num_hidden=78)


class FixedFeatures:
    """Build queries and keys whose cls attends to the patches with given weights."""

    def __init__(self, share_L, batch):
        keys = torch.zeros(batch, 1, 1 + len(share_L), 1)
        keys[:, 0, 1:, 0] = share_L.log()
        self.value = QueryKey(torch.ones(batch, 1, 1 + len(share_L), 1), keys)

    def __call__(self, teacher):
        assert teacher == 'clip'
        return TokenFeatures({'logit:-1': self.value}, num_prefix=1)


def test_attention_masking__draws_in_proportion_to_the_attention():
    share_L = torch.tensor([8.0, 1.0, 1.0, 2.0])
    context = context_of(VisibleViT, side=8)
    masking = AttentionMasking(student=context, teacher='clip', num_visible=1)
    torch.manual_seed(0)
    mask = masking(torch.zeros(4000, 1, 8, 8), FixedFeatures(share_L, 4000))
    found = torch.bincount(mask.ids_keep_BV.flatten(), minlength=4) / 4000
    torch.testing.assert_close(found, share_L / share_L.sum(), atol=0.04, rtol=0)
    assert masking.teacher_taps() == {'clip': ('logit:-1',)}


def test_attention_of_cls__equals_explicit_softmax():
    q, k = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    whole = (q @ k.transpose(-1, -2) / 2).softmax(-1)
    torch.testing.assert_close(attention_of_cls(QueryKey(q, k, 0.5), 2), whole[:, :, 0, 2:].mean(1))


@pytest.mark.parametrize(('options', 'visible'), [(dict(ratio=0.6), 19 * 4), (dict(num_visible=40), 40)])
def test_random_masking__units_are_hidden_whole(options, visible):
    mask = masks_of(RandomMasking(student=context_of(VisibleViT), unit=2, **options), 20)
    squares = mask.hidden_BL.view(20, 7, 2, 7, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert torch.equal(squares.all(3), squares.any(3))
    assert ((~mask.hidden_BL).sum(1) == visible).all()
    assert mask.ids_keep_BV.shape == (20, visible)
    assert len({tuple(row) for row in mask.ids_keep_BV.tolist()}) == 20


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(ratio=0.5, unit=4), 'unit=4: it must divide the grid of 14 × 14'),
        (dict(num_visible=10, unit=2), 'num_visible=10: with unit=2 it must be a multiple of 4'),
    ],
)
def test_random_masking__wrong_units(options, message):
    with pytest.raises(ValueError, match=message):
        RandomMasking(student=context_of(), **options)
