"""Attention of the dense backbone against explicit softmaxes over all tokens, in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import scatter_weights
from torch.nn import functional as F

from mkd_plugin.dense.attention import DenseAttention
from mkd_plugin.models.vit.relative import RelativePositionBias, spread, table_length

GRID = (3, 5)


def pairwise_bias(table_RH, grid, cls):
    """The bias of every pair of tokens, looked up one by one in a table of this very grid, (H, N, N)."""
    height, width = grid
    patches = [(row, column) for row in range(height) for column in range(width)]
    tokens = ([None] if cls else []) + patches
    rows = []
    for query in tokens:
        for key in tokens:
            if query is None or key is None:
                entry = {(True, False): -3, (False, True): -2, (True, True): -1}[query is None, key is None]
            else:
                down, across = query[0] - key[0] + height - 1, query[1] - key[1] + width - 1
                entry = down * (2 * width - 1) + across
            rows.append(table_RH[entry])
    return torch.stack(rows).view(len(tokens), len(tokens), -1).permute(2, 0, 1)


def explicit(q, k, v, bias):
    """Softmax over all keys, spelt out."""
    logits = torch.einsum('bhik,bhjk->bhij', q, k) / q.shape[-1] ** 0.5 + bias
    shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.einsum('bhij,bhjk->bhik', shares, v)


def random_bias(grid=GRID, heads=2):
    bias = RelativePositionBias(grid=grid, num_heads=heads).double()
    torch.nn.init.normal_(bias.relative_position_bias_table)
    return bias


@pytest.mark.parametrize('cls', [True, False], ids=['cls', 'patches'])
def test_spread__is_the_entry_of_every_pair(cls):
    bias = random_bias()
    found = spread(bias.offsets(GRID), bias.of_cls() if cls else None)
    assert torch.equal(found, pairwise_bias(bias.relative_position_bias_table, GRID, cls))


@pytest.mark.parametrize('grid', [(6, 7), (14, 3), (2, 3), (1, 1), (30, 5)])
def test_offsets__of_another_grid_are_timms(grid):
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    bias = random_bias()
    table = bias.relative_position_bias_table
    wanted = resize_rel_pos_bias_table(table.detach().float(), grid, (table_length(grid), 2), old_window_size=GRID)
    found = bias.offsets(grid)
    torch.testing.assert_close(found.flatten(1).T.float(), wanted[:-3], rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(table.grad).all()
    assert table.grad.abs().sum() > 0


def test_offsets__of_one_patch_are_its_own_everywhere():
    bias = random_bias(grid=(1, 1))
    assert torch.equal(bias.offsets((2, 3)), bias.relative_position_bias_table[:1].T[..., None].expand(2, 3, 5))


def test_offsets__float32_under_autocast():
    bias = RelativePositionBias(grid=GRID, num_heads=2)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert bias.offsets((6, 7)).dtype == torch.float32


def test_within__takes_the_tables_own_entries():
    bias = random_bias()
    for grid in ((2, 3), (3, 2), (1, 1)):
        whole = pairwise_bias(bias.relative_position_bias_table, GRID, cls=False).unflatten(1, GRID).unflatten(3, GRID)
        wanted = whole[:, : grid[0], : grid[1], : grid[0], : grid[1]].flatten(3).flatten(1, 2)
        assert torch.equal(spread(bias.within(grid), None), wanted)
    assert torch.equal(bias.within((4, 5)), bias.offsets((4, 5)))


def explicit_layer(layer, x, bias):
    """The whole layer with logits of every pair of tokens."""
    q, k, v = layer.qkv(x).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return layer.gamma1(layer.proj(explicit(q, k, v, bias).transpose(1, 2).flatten(2)))


def attention(relative, grid=(5, 7)):
    layer = DenseAttention(width=16, num_heads=2, relative_grid=grid if relative else None, layer_scale=0.5)
    return scatter_weights(layer).double()


@pytest.mark.parametrize('relative', [True, False])
@pytest.mark.parametrize('window', [2, 3, 4, 7])
def test_windows__are_a_mask_over_all_tokens(window, relative):
    grid = (5, 7)
    layer = attention(relative)
    x = torch.randn(2, 35, 16, dtype=torch.float64)
    place = torch.stack(torch.meshgrid(*(torch.arange(side) // window for side in grid), indexing='ij')).flatten(1)
    together = (place[:, :, None] == place[:, None, :]).all(0)
    bias = torch.zeros(35, 35, dtype=torch.float64).masked_fill(~together, -torch.inf)
    if relative:
        bias = bias + pairwise_bias(layer.rel_pos_bias.relative_position_bias_table, grid, cls=False)
    torch.testing.assert_close(layer(x, grid, window), explicit_layer(layer, x, bias), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('relative', [True, False])
def test_windows__are_padded_windows_whose_padding_is_masked(relative):
    grid, window = (5, 7), 4
    layer = attention(relative)
    x = torch.randn(2, 35, 16, dtype=torch.float64)
    padded = F.pad(x.view(2, 5, 7, 16), (0, 0, 0, 1, 0, 3))
    real = F.pad(torch.ones(5, 7, dtype=torch.bool), (0, 1, 0, 3))
    bias = 0.0
    if relative:
        whole = pairwise_bias(layer.rel_pos_bias.relative_position_bias_table, grid, cls=False)
        bias = whole.unflatten(1, grid).unflatten(3, grid)[:, :4, :4, :4, :4].flatten(3).flatten(1, 2)
    result = torch.zeros_like(padded)
    for top in (0, 4):
        for left in (0, 4):
            rows, columns = slice(top, top + 4), slice(left, left + 4)
            hidden = torch.zeros(16, dtype=torch.float64).masked_fill(~real[rows, columns].flatten(), -torch.inf)
            mixed = explicit_layer(layer, padded[:, rows, columns].flatten(1, 2), bias + hidden)
            result[:, rows, columns] = mixed.view(2, 4, 4, 16)
    wanted = result[:, :5, :7].flatten(1, 2)
    torch.testing.assert_close(layer(x, grid, window), wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('cls', [True, False], ids=['cls', 'patches'])
def test_dense_attention__values_and_gradients_over_all_tokens(cls):
    grid = (5, 7)
    layer = attention(relative=True)
    table = layer.rel_pos_bias.relative_position_bias_table
    x = torch.randn(2, 35 + cls, 16, dtype=torch.float64, requires_grad=True)
    found, wanted = layer(x, grid), explicit_layer(layer, x, pairwise_bias(table, grid, cls))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(result, (x, table), direction) for result in (found, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, grid), wanted)


def test_dense_attention__a_bias_that_is_not_trained_hinders_no_gradient():
    layer = attention(relative=True)
    layer.rel_pos_bias.requires_grad_(False)
    x = torch.randn(2, 36, 16, dtype=torch.float64, requires_grad=True)
    layer(x, (5, 7)).sum().backward()
    assert x.grad.abs().sum() > 0
