"""Masks, regions and features against explicit loops over images and patches."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers.launches import Launches
from helpers.networks import hidden_masks

from mkd_plugin.structures import Permute, QueryKey, Region, RegionTokens, TokenFeatures, TokenMask, Tokens, take

RAGGED_BL = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0]], dtype=torch.bool)


def patches_of(hidden_BL, kind):
    """List the ids of hidden, visible or all patches, image by image."""
    wanted = {'hidden': (True,), 'visible': (False,), 'all': (True, False)}[kind]
    return [[index for index, hidden in enumerate(row) if hidden in wanted] for row in hidden_BL.tolist()]


def test_take__picks_rows():
    x_BND, rows_BR = torch.randn(2, 5, 3), torch.tensor([[4, 0, 0], [1, 2, 3]])
    picked = take(x_BND, rows_BR)
    for b, r in product(range(2), range(3)):
        assert torch.equal(picked[b, r], x_BND[b, rows_BR[b, r]])


def test_from_hidden__ids_are_ascending_and_restore_inverts():
    hidden_BL = hidden_masks(batch=5, patches=9, visible=4)
    mask = TokenMask.from_hidden(hidden_BL, 4)
    assert mask.ids_keep_BV.tolist() == patches_of(hidden_BL, 'visible')
    assert mask.ids_hide_BM.tolist() == patches_of(hidden_BL, 'hidden')
    tokens = torch.randn(5, 9, 2)
    shuffled = torch.cat([take(tokens, mask.ids_keep_BV), take(tokens, mask.ids_hide_BM)], dim=1)
    assert torch.equal(take(shuffled, mask.ids_restore_BL), tokens)


def test_from_kept__order_of_the_ids_does_not_matter():
    mask = TokenMask.from_kept(torch.tensor([[5, 0, 3], [2, 4, 1]]), 6)
    assert mask.ids_keep_BV.tolist() == [[0, 3, 5], [1, 2, 4]]
    assert mask.hidden_BL.int().tolist() == [[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1]]
    assert mask.ids_restore_BL.tolist() == [[0, 3, 4, 1, 5, 2], [3, 0, 1, 4, 2, 5]]


@pytest.mark.parametrize('text', ['masked', '', '+cls', 'hidden+cls+cls', 'hidden+register', 'Hidden', 'hidden cls'])
def test_parse__unknown_region(text):
    with pytest.raises(ValueError, match="use one of 'hidden', 'visible', 'all', optionally with"):
        Region.parse(text)


@pytest.mark.parametrize('cls', [False, True])
@pytest.mark.parametrize('patches', ['hidden', 'visible', 'all'])
def test_parse__round_trip(patches, cls):
    assert Region.parse(patches + '+cls' * cls) == Region(patches, cls)


@pytest.mark.parametrize('cls', [False, True])
@pytest.mark.parametrize('patches', ['hidden', 'visible', 'all'])
def test_tokens__equal_masks_need_no_weights(patches, cls):
    hidden_BL = hidden_masks()
    region = Region(patches, cls).tokens(TokenMask.from_hidden(hidden_BL, 4))
    assert region.ids_BR.tolist() == patches_of(hidden_BL, patches)
    assert (region.patches, region.cls, region.weight_BR) == (patches, cls, None)


@pytest.mark.parametrize('cls', [False, True])
@pytest.mark.parametrize('patches', ['hidden', 'visible', 'all'])
def test_tokens__ragged_masks_weigh_the_full_grid(patches, cls):
    region = Region(patches, cls).tokens(TokenMask(RAGGED_BL))
    assert region.ids_BR.tolist() == [list(range(6))] * 3
    if patches == 'all':
        assert region.weight_BR is None
        return
    wanted = [[1.0] * cls + [float(patch in ids) for patch in range(6)] for ids in patches_of(RAGGED_BL, patches)]
    assert region.weight_BR.tolist() == wanted


def mean_by_loops(loss, hidden_BL, patches, cls):
    """Mean over the region's tokens of the batch and over channels."""
    values = []
    for row, ids in zip(loss, patches_of(hidden_BL, patches), strict=True):
        for token in ([0] if cls else []) + [index + cls for index in ids]:
            values += row[token].flatten().tolist()
    return sum(values) / len(values)


@pytest.mark.parametrize('cls', [False, True])
@pytest.mark.parametrize('patches', ['hidden', 'visible', 'all'])
@pytest.mark.parametrize('channels', [(), (4,)], ids=['B R', 'B R D'])
def test_mean__ragged_masks(patches, cls, channels):
    loss = torch.rand(3, 6 + cls, *channels, dtype=torch.float64)
    found = Region(patches, cls).tokens(TokenMask(RAGGED_BL)).mean(loss)
    assert found.item() == pytest.approx(mean_by_loops(loss, RAGGED_BL, patches, cls), rel=1e-12)


def test_mean__without_weights_is_the_plain_mean():
    region = RegionTokens('hidden', True, torch.zeros(2, 3, dtype=torch.long))
    loss = torch.rand(2, 4, 5)
    assert torch.equal(region.mean(loss), loss.mean())
    assert torch.equal(region.mean(torch.tensor(1.5)), torch.tensor(1.5))  # the loss is already averaged


@pytest.mark.parametrize('shape', [(), (3,), (3, 5), (3, 4, 6, 6)], ids=['scalar', 'B', 'other R', 'relation'])
def test_mean__weights_need_one_value_a_token(shape):
    region = Region('hidden', False).tokens(TokenMask(RAGGED_BL))
    with pytest.raises(ValueError, match='number of hidden patches differs between images'):
        region.mean(torch.zeros(shape))


def test_mean__relation_with_as_many_heads_as_tokens():
    region = Region('hidden', False).tokens(TokenMask(RAGGED_BL))
    with pytest.raises(ValueError, match='number of hidden patches differs between images'):
        region.mean(torch.zeros(3, 6, 6, 6))


def test_mean__empty_region_is_0():
    region = Region('hidden', False).tokens(TokenMask(torch.zeros(2, 6, dtype=torch.bool)))
    assert region.mean(torch.ones(2, 6)) == 0


def selected_by_loops(x_BND, num_prefix, region_ids, cls, computed_ids):
    """Select a region's tokens from features of the patches ``computed_ids`` after the prefix."""
    rows = []
    for x_ND, wanted, computed in zip(x_BND, region_ids, computed_ids, strict=True):
        places = ([0] if cls else []) + [num_prefix + computed.index(patch) for patch in wanted]
        rows.append(torch.stack([x_ND[place] for place in places]))
    return torch.stack(rows)


@pytest.mark.parametrize(('num_prefix', 'cls'), [(0, False), (1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize(
    ('features_of', 'patches'),
    [('all', 'hidden'), ('all', 'visible'), ('all', 'all'), ('visible', 'visible'), ('visible', 'all')],
)
def test_select__every_combination(features_of, patches, cls, num_prefix):
    """Features of the full grid, or of visible patches only ('all' is then allowed if nothing is hidden)."""
    num_visible = 16 if (features_of, patches) == ('visible', 'all') else 4
    hidden_BL = hidden_masks(visible=num_visible)
    mask = TokenMask.from_hidden(hidden_BL, num_visible)
    computed = patches_of(hidden_BL, features_of)
    x_BND = torch.randn(3, num_prefix + len(computed[0]), 5)
    features = TokenFeatures({'t': Tokens(x_BND)}, num_prefix, mask if features_of == 'visible' else None)
    found = features.select('t', Region(patches, cls).tokens(mask))
    assert torch.equal(found, selected_by_loops(x_BND, num_prefix, patches_of(hidden_BL, patches), cls, computed))


@pytest.mark.parametrize('cls', [False, True])
@pytest.mark.parametrize('patches', ['hidden', 'all'])
def test_select__hidden_patches_were_never_computed(patches, cls):
    mask = TokenMask.from_hidden(hidden_masks(), 4)
    features = TokenFeatures({'t': Tokens(torch.randn(3, 5, 2))}, num_prefix=1, mask=mask)
    with pytest.raises(AssertionError, match='hidden patches have no features'):
        features.select('t', Region(patches, cls).tokens(mask))


@pytest.mark.parametrize('patches', ['hidden', 'visible', 'all'])
def test_select__ragged_masks_give_the_full_grid(patches):
    x_BND = torch.randn(3, 8, 5)
    region = Region(patches, True).tokens(TokenMask(RAGGED_BL))
    found = TokenFeatures({'t': Tokens(x_BND)}, num_prefix=2).select('t', region)
    assert torch.equal(found, torch.cat([x_BND[:, :1], x_BND[:, 2:]], dim=1))
    assert found.shape[:2] == (3, 7)  # as many rows as region.weight_BR has


def test_tokens__gives_all_of_them():
    x_BND = torch.randn(2, 5, 3)
    assert torch.equal(TokenFeatures({'t': Tokens(x_BND)}, num_prefix=1).tokens('t'), x_BND)


@pytest.mark.parametrize('rows', [slice(None), slice(1, None), torch.tensor([[0, 2, 3], [0, 1, 4]])])
def test_query_key__at_equals_loops(rows):
    q, k = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    found = QueryKey(q, k).at(rows)
    for b, h in product(range(2), range(3)):
        chosen = list(range(5))[rows] if isinstance(rows, slice) else rows[b].tolist()
        for i, j in product(range(len(chosen)), repeat=2):
            wanted = sum(q[b, h, chosen[i], c].item() * k[b, h, chosen[j], c].item() for c in range(4))
            assert found[b, h, i, j].item() == pytest.approx(wanted, abs=1e-12)


def test_permute__is_take_with_gradients_of_any_order_without_a_scatter():
    x_BND = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    rows_BN = torch.stack([torch.randperm(5), torch.randperm(5)])
    inverse_BN = rows_BN.argsort(dim=1)
    assert torch.equal(Permute.apply(x_BND, rows_BN, inverse_BN), take(x_BND, rows_BN))
    assert torch.autograd.gradcheck(lambda x: Permute.apply(x, rows_BN, inverse_BN), (x_BND,))
    assert torch.autograd.gradgradcheck(lambda x: Permute.apply(x, rows_BN, inverse_BN).square(), (x_BND,))
    with Launches() as launches:
        Permute.apply(x_BND, rows_BN, inverse_BN).sum().backward()
    assert not any('scatter' in name for name in launches.names)
