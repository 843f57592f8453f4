"""Maskings: the number of visible patches, their ids, and the uniform distribution over subsets."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.registry import build
from mkd_plugin.structures import QueryKey, TokenFeatures, Tokens


def student(side=14):
    """Build a student with side × side patches, which is all that a masking reads."""
    return StudentContext(SimpleNamespace(grid=(side, side)), (0.0,) * 3, (1.0,) * 3)


def draw(masking, batch=2):
    return masking(torch.zeros(batch, 3, 1, 1), teacher_features=None)


@pytest.mark.parametrize(
    ('side', 'options', 'visible'),
    [
        (14, dict(ratio=0.75), 49),
        (14, dict(ratio=0.9), 19),  # 19.6, floored
        (14, dict(ratio=0.95), 9),
        (14, dict(ratio=0.98), 3),
        (14, dict(ratio=0.4), 117),
        (10, dict(ratio=0.9), 10),  # 100 · (1 − 0.9) = 9.999999999999998 in floating point
        (10, dict(ratio=0.7), 30),
        (14, dict(num_visible=10), 10),
        (14, dict(num_visible=4), 4),
        (14, dict(num_visible=195), 195),
        (14, dict(num_visible=1), 1),
    ],
)
def test_random_masking__number_of_visible_patches(side, options, visible):
    masking = build(dict(type='RandomMasking', **options), student=student(side))
    mask = draw(masking)
    assert masking.num_visible == visible
    assert (~mask.hidden_BL).sum(1).tolist() == [visible] * 2
    assert mask.hidden_BL.shape == (2, side**2)
    assert mask.ids_keep_BV.tolist() == [
        [i for i, hidden in enumerate(row) if not hidden] for row in mask.hidden_BL.tolist()
    ]


def test_random_masking__every_subset_is_as_likely():
    """Chi-square over the 36 pairs of 9 patches, drawn 7200 times: 66.6 is exceeded once in a thousand."""
    masking = build(dict(type='RandomMasking', num_visible=2), student=student(3))
    counts = Counter(tuple(row) for row in draw(masking, batch=7200).ids_keep_BV.tolist())
    assert len(counts) == math.comb(9, 2)
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 66.6


def test_random_masking__follows_the_seed():
    masking = build(dict(type='RandomMasking', ratio=0.5), student=student(4))
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(draw(masking).hidden_BL)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])  # each image has its own mask


def test_no_masking__shows_everything():
    masking = build(dict(type='NoMasking'), student=student(4))
    mask = draw(masking)
    assert masking.num_visible == masking.num_patches == 16
    assert not mask.hidden_BL.any()
    assert mask.ids_keep_BV.tolist() == mask.ids_restore_BL.tolist() == [list(range(16))] * 2
    assert mask.ids_hide_BM.shape == (2, 0)


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def kept_by_loops(layers, drop):
    """Hybrid Distill, Sec. 3, for one image: layer by layer, drop the remaining patches most similar to their mean."""
    kept = list(range(len(layers[0])))
    for index, tokens in enumerate(layers):
        width = len(tokens[0])
        average = [sum(tokens[patch][c] for patch in kept) / len(kept) for c in range(width)]
        ranked = sorted(kept, key=lambda patch: cosine(tokens[patch], average))
        kept = sorted(ranked[: round(len(layers[0]) * (1 - drop) ** (index + 1))])
    return kept


@pytest.mark.parametrize('num_prefix', [0, 1, 2])
@pytest.mark.parametrize(('drop', 'at'), [(0.3, (0, 4, 8)), (0.5, (2,)), (0.05, (0, 1, 2, 3))])
def test_redundancy_masking__equals_loops(drop, at, num_prefix):
    masking = build(dict(type='RedundancyMasking', teacher='mim', drop=drop, at=at), student=student(6))
    assert masking.teacher_taps() == {'mim': tuple(f'input:{block}' for block in at)}
    taps = {f'input:{block}': torch.randn(4, num_prefix + 36, 5, dtype=torch.float64) for block in at}
    asked = []

    def features(teacher):
        asked.append(teacher)
        return TokenFeatures({name: Tokens(value) for name, value in taps.items()}, num_prefix)

    mask = masking(torch.zeros(4, 3, 1, 1), features)
    assert asked == ['mim']  # one full forward pass of the teacher
    for b, kept in enumerate(mask.ids_keep_BV.tolist()):
        layers = [taps[f'input:{block}'][b, num_prefix:].tolist() for block in at]
        assert kept == kept_by_loops(layers, drop)
    assert (~mask.hidden_BL).sum(1).tolist() == [masking.num_visible] * 4


@pytest.mark.parametrize(
    ('side', 'drop', 'blocks', 'counts'),
    [(14, 0.3, 3, [137, 96, 67]), (14, 0.5, 1, [98]), (4, 0.25, 2, [12, 9]), (14, 0.9, 2, [20, 2])],
)
def test_redundancy_masking__counts(side, drop, blocks, counts):
    """round(L · (1 − K)^i): with K = 0.3 at three layers, a third of 196 patches remains."""
    masking = build(dict(type='RedundancyMasking', teacher='mim', drop=drop, at=range(blocks)), student=student(side))
    assert masking.counts == counts
    assert masking.num_visible == counts[-1]


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(type='RandomMasking'), 'Set exactly one of ratio and num_visible, got ratio=None, num_visible=None'),
        (
            dict(type='RandomMasking', ratio=0.5, num_visible=3),
            'Set exactly one of ratio and num_visible, got ratio=0.5',
        ),
        (dict(type='RandomMasking', ratio=0.0), r'ratio=0.0: it must lie in \(0, 1\). To hide nothing, use NoMasking'),
        (dict(type='RandomMasking', ratio=1.0), r'must lie in \(0, 1\)'),
        (dict(type='RandomMasking', ratio=75), r'ratio=75: it must lie in \(0, 1\)'),
        (dict(type='RandomMasking', ratio=-0.1), r'must lie in \(0, 1\)'),
        (
            dict(type='RandomMasking', ratio=0.95),
            'ratio=0.95 leaves 0 of 16 patches visible; the number must lie in .1, 15.',
        ),
        (dict(type='RandomMasking', ratio=1e-9), 'ratio=1e-09 leaves 16 of 16 patches visible'),
        (dict(type='RandomMasking', num_visible=0), 'num_visible=0 leaves 0 of 16'),
        (dict(type='RandomMasking', num_visible=16), 'num_visible=16 leaves 16 of 16'),
        (dict(type='RandomMasking', num_visible=-1), 'num_visible=-1 leaves -1 of 16'),
        (dict(type='RedundancyMasking', teacher='m', drop=0.0), 'To hide nothing, use NoMasking'),
        (dict(type='RedundancyMasking', teacher='m', drop=1.0), r'must lie in \(0, 1\)'),
        (dict(type='RedundancyMasking', teacher='m', at=()), 'give a list of at least one block'),
        (dict(type='RedundancyMasking', teacher='m', drop=0.8), 'drop=0.8 at 3 layers leaves none of 16 patches'),
        (dict(type='RandomMasking', mask_ratio=0.5), r"no option \['mask_ratio'\]. Did you mean \['ratio'\]"),
    ],
)
def test_masking__wrong_options(cfg, message):
    with pytest.raises(ValueError, match=message):
        build(cfg, student=student(4))


def test_random_masking__num_visible_must_be_an_integer():
    with pytest.raises(ValueError, match='num_visible'):
        build(dict(type='RandomMasking', num_visible=4.5), student=student(4))


def test_several_masks__need_what_their_masking_needs():
    attention = dict(type='AttentionMasking', teacher='t', ratio=0.5)
    for inner, flags in ((attention, (True, False)), (dict(type='MultiBlockMasking', min_visible=4), (False, True))):
        masking = build(dict(type='SeveralMasks', masking=inner, count=2), student=student(6))
        assert (masking.reads_cls, masking.per_process) == flags


def test_several_masks__each_follows_its_own_images_attention():
    """A teacher looks at four patches in each image; they are the visible ones in all of the image's masks."""
    looked_at = torch.stack([torch.randperm(36)[:4].sort().values for _ in range(5)])
    keys = torch.zeros(5, 1, 37, 1)
    keys[:, 0, 1:, 0] = torch.full((5, 36), -50.0).scatter(1, looked_at, 0.0)
    features = TokenFeatures({'logit:-1': QueryKey(torch.ones(5, 1, 37, 1), keys)}, num_prefix=1)
    inner = dict(type='AttentionMasking', teacher='t', num_visible=4)
    masking = build(dict(type='SeveralMasks', masking=inner, count=3), student=student(6))
    mask = masking(torch.zeros(5, 3, 1, 1), {'t': features}.get)
    assert mask.per_image == 3
    assert torch.equal(mask.ids_keep_BV.sort(1).values, looked_at.repeat_interleave(3, dim=0))


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(context_area=(0.02, 0.03), min_visible=6),
            'between 1 and 4 visible patches, which the smallest context has',
        ),
        (dict(target_area=[0.1]), r'target_area=\[0.1\]: give two shares in \(0, 1\], the smaller one first'),
        (dict(target_aspect=[0.1]), r'target_aspect=\[0.1\]: give two ratios above 0'),
        (dict(targets=0), 'targets=0, min_visible=11: use at least one target'),
    ],
)
def test_multi_block_masking__wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(dict(type='MultiBlockMasking', **options), student=student())


def test_multi_block_masking__shows_as_many_patches_as_it_may():
    masking = build(dict(type='MultiBlockMasking', context_area=(0.1, 0.2), min_visible=16), student=student())
    for _ in range(20):
        assert draw(masking).ids_keep_BV.shape[1] >= 16
