"""The ViT against mmpretrain's and timm's with the same weights, and explicit loops."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from helpers.networks import hidden_masks, poison, scatter_weights
from torch import nn

from mkd_plugin.models.students import ClassifierViT, MaskTokenViT, VisibleViT
from mkd_plugin.models.vit import Arch, Block, VisionTransformer, resolve_arch, sincos_positions
from mkd_plugin.models.vit.block import DropPath, drop_path_rates
from mkd_plugin.structures import TokenMask, take


@pytest.fixture
def network(vit_options) -> VisionTransformer:
    return scatter_weights(VisionTransformer(position='learned', **vit_options)).double().eval()


def host_vit(**options):
    """Build mmpretrain's ViT in tiny size."""
    from mmpretrain.models import VisionTransformer as HostViT

    arch = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=128)
    host = HostViT(arch=arch, img_size=16, patch_size=4, **options).double()
    host.eval()  # returns nothing
    return host


TIMM_NAMES = [  # ours → timm's
    (r'^patch_embed\.projection', 'patch_embed.proj'),
    (r'^layers\.', 'blocks.'),
    (r'^ln1', 'norm'),
    (r'\.ln(\d)', r'.norm\1'),
    (r'ffn\.layers\.0\.0', 'mlp.fc1'),
    (r'ffn\.layers\.1', 'mlp.fc2'),
]


def timm_name(key):
    for pattern, name in TIMM_NAMES:
        key = re.sub(pattern, name, key)
    return key


def close(found, wanted, tolerance=1e-10):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_forward__equals_mmpretrains_on_the_same_weights(network, images):
    host = host_vit(out_type='raw', final_norm=True)
    host.load_state_dict(network.state_dict(), strict=True)  # no key is missing, and none is unexpected
    close(network(images).tokens('output'), host(images)[0])


def test_classifier__equals_mmpretrains_avg_featmap(vit_options, images):
    ours = scatter_weights(ClassifierViT(**vit_options)).double().eval()
    host = host_vit(out_type='avg_featmap', final_norm=False)
    assert set(ours.state_dict()) == set(host.state_dict())
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in host.named_parameters()}
    host.load_state_dict(ours.state_dict())
    close(ours(images)[0], host(images)[0])


def test_forward__equals_timms_on_the_same_weights(network, images):
    timm = pytest.importorskip('timm')
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, num_classes=0, global_pool=''
    )
    theirs.load_state_dict({timm_name(key): value for key, value in network.state_dict().items()}, strict=True)
    close(network(images).tokens('output'), theirs.double().eval().forward_features(images))


def test_embed__equals_a_loop_over_patches(network, images):
    projection = network.patch_embed.projection
    found = network.embed(images, None)
    for b, image in enumerate(images):
        close(found[b, 0], network.cls_token[0, 0] + network.pos_embed[0, 0])
        for index in range(16):
            row, column = divmod(index, 4)
            pixels = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            token = torch.stack([(kernel * pixels).sum() for kernel in projection.weight]) + projection.bias
            close(found[b, index + 1], token + network.pos_embed[0, index + 1])


@pytest.mark.parametrize('order', ['ascending', 'shuffled'])
def test_forward__visible_only_never_reads_hidden_pixels(network, images, order):
    hidden_BL = hidden_masks()
    mask = TokenMask.from_hidden(hidden_BL, 4)
    if order == 'shuffled':  # the network computes the mask's ids in their order
        mask = TokenMask(hidden_BL, mask.ids_keep_BV.flip(1), mask.ids_hide_BM, mask.ids_restore_BL)
    features = network(poison(images, hidden_BL), mask, taps=('input:0', 'output'))
    full = network.embed(images, None)
    rows = torch.cat([torch.zeros(3, 1, dtype=torch.long), mask.ids_keep_BV + 1], dim=1)
    wanted = torch.stack([tokens[row] for tokens, row in zip(full, rows, strict=True)])
    close(features.tokens('input:0'), wanted)
    for block in network.layers:
        wanted, _ = block(wanted)
    close(features.tokens('output'), network.ln1(wanted))
    assert features.mask is mask


def test_forward__visible_only_refuses_a_mask_without_ids(network, images):
    """TokenMask(hidden) has no ids_keep; a network without mask tokens must not see hidden patches."""
    hidden_BL = hidden_masks()
    with pytest.raises(ValueError, match='the same number of visible patches'):
        network(poison(images, hidden_BL), TokenMask(hidden_BL))


@pytest.mark.parametrize('mode', ['eval', 'drop path'])
def test_block__rows_equal_those_of_the_full_block(mode):
    block = scatter_weights(Block(width=16, num_heads=2)).double()
    kept_2B11 = DropPath([0.5]).double()(torch.zeros(6, 1, dtype=torch.float64))[0] if mode == 'drop path' else None
    x_BND = torch.randn(6, 7, 16, dtype=torch.float64)
    rows_BR = torch.stack([torch.randperm(7)[:3] for _ in range(6)])
    full, _ = block(x_BND, kept_2B11=kept_2B11)
    some, query_key = block(x_BND, rows_BR, kept_2B11=kept_2B11)
    close(some, take(full, rows_BR))
    assert query_key.k_BHNK.shape[2] == 7  # the rows still attend to all tokens
    if mode == 'drop path':
        kept = (full != x_BND).flatten(1).any(1)
        assert 0 < kept.sum() < 6  # some images skip both branches, so that the seeds matter


def test_drop_path__keeps_the_expectation():
    """Branches are scaled by 1 / (1 − p) and drawn per image, branch and block; blocks in evaluation skip none."""
    block, drop_path = Block(width=8, num_heads=1).double(), DropPath([0.0, 0.25]).double()
    x_BND = torch.randn(1, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        nn.init.zeros_(block.ffn.layers[1].weight)
        nn.init.zeros_(block.ffn.layers[1].bias)  # leaves one branch
        update = block(x_BND)[0] - x_BND
        many_BND = x_BND.expand(4000, -1, -1)
        never, kept_2B11 = drop_path(many_BND)
        updates = block(many_BND, kept_2B11=kept_2B11)[0] - x_BND
        close(block.eval()(many_BND, kept_2B11=kept_2B11)[0], x_BND + update.expand(4000, -1, -1))
    assert (never == 1).all() and drop_path.eval()(many_BND) == [None, None]
    assert kept_2B11[0].ne(kept_2B11[1]).double().mean().item() == pytest.approx(2 * 0.75 * 0.25, abs=0.03)
    scale = updates.flatten(1)[:, 0] / update.flatten()[0]
    assert set(scale.mul(3).round().tolist()) == {0.0, 4.0}
    assert scale.mean().item() == pytest.approx(1, abs=0.04)


def test_activation_checkpointing__same_values_and_gradients(vit_options, images):
    """With drop path, whose draws must repeat in the recomputation, and with a relation tap."""
    plain = scatter_weights(VisibleViT(drop_path_rate=0.5, **vit_options)).double()
    again = VisibleViT(drop_path_rate=0.5, activation_checkpointing=True, **vit_options).double()
    again.load_state_dict(plain.state_dict())
    results = []
    for network in (plain, again):
        torch.manual_seed(1)
        features = network(images, taps=('output', 'relation:1'))
        loss = features.tokens('output').square().sum() + features.tokens('relation:1').sum()
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in network.parameters())])
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize(('grid', 'width'), [((4, 4), 32), ((2, 3), 8)])
def test_sincos_positions__equals_maes_construction(grid, width):
    """`get_2d_sincos_pos_embed` of MAE's util/pos_embed.py, value by value: its "h" half is fed the columns."""
    table = sincos_positions(grid, width, num_prefix=2)[0].double().numpy()
    assert table.shape == (2 + grid[0] * grid[1], width)
    assert not table[:2].any()
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            wanted = []
            for place in (column, row):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                wanted += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            np.testing.assert_allclose(table[2 + row * grid[1] + column], wanted, atol=1e-7)


def test_sincos_positions__is_mmpretrains_with_rows_and_columns_exchanged():
    """mmpretrain's meshgrid is 'ij', MAE's 'xy': files contain the table, so it is loaded and not rebuilt."""
    from mmpretrain.models.utils import build_2d_sincos_position_embedding

    theirs = build_2d_sincos_position_embedding(5, 16, cls_token=True)
    exchanged = theirs[:, 1:].unflatten(1, (5, 5)).transpose(1, 2).flatten(1, 2)
    close(sincos_positions((5, 5), 16), torch.cat([theirs[:, :1], exchanged], dim=1), 1e-6)


def test_sincos_positions__width_must_be_a_multiple_of_4():
    with pytest.raises(ValueError, match='multiple of 4, got 30'):
        sincos_positions((2, 2), 30)


def test_drop_path_rates__as_listed():
    assert drop_path_rates((0.1, 0.0, 0.3), 3) == [0.1, 0.0, 0.3]
    with pytest.raises(ValueError, match='lists 2 rates, but there are 3 blocks'):
        drop_path_rates((0.1, 0.1), 3)
    with pytest.raises(ValueError, match=r'must lie in \[0, 1\)'):
        drop_path_rates((0.1, 1.0, 0.1), 3)


@pytest.mark.parametrize(('rate', 'depth'), [(0.2, 12), (0.3, 3), (0.1, 1), (0.0, 2)])
def test_drop_path_rates__grow_linearly(rate, depth, vit_options):
    wanted = np.linspace(0, rate, depth)
    np.testing.assert_allclose(drop_path_rates(rate, depth), wanted)
    vit_options['arch'] = dict(width=8, depth=depth, num_heads=1)
    network = VisionTransformer(drop_path_rate=rate, **vit_options)
    np.testing.assert_allclose(network.drop_path.rates, wanted)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_get_layer_depth__equals_mmpretrains_for_every_parameter(vit_options, prefix):
    ours, host = ClassifierViT(**vit_options), host_vit(out_type='avg_featmap', final_norm=False)
    names = [prefix + name for name, _ in ours.named_parameters()] + ['head.fc.weight'] * bool(prefix)
    for name in names:
        assert ours.get_layer_depth(name, prefix) == host.get_layer_depth(name, prefix), name


def test_get_layer_depth__stem_blocks_and_the_rest(vit_options):
    network = MaskTokenViT(position='learned', **vit_options)
    depths = {name: network.get_layer_depth(name) for name, _ in network.named_parameters()}
    assert {count for _, count in depths.values()} == {5}
    stem = {'cls_token', 'pos_embed', 'mask_token', 'patch_embed.projection.weight', 'patch_embed.projection.bias'}
    assert {name for name, (depth, _) in depths.items() if depth == 0} == stem
    assert {name for name, (depth, _) in depths.items() if depth == 4} == {'ln1.weight', 'ln1.bias'}
    for index in range(3):
        block = {name for name in depths if name.startswith(f'layers.{index}.')}
        assert len(block) == 12
        assert {depths[name][0] for name in block} == {index + 1}


RAGGED_BL = torch.stack([torch.arange(16) < count for count in (3, 11, 0)])


@pytest.mark.parametrize('kind', ['equal', 'ragged'])
def test_mask_token__stands_in_for_hidden_patches(vit_options, images, kind):
    network = scatter_weights(MaskTokenViT(position='learned', **vit_options)).double().eval()
    hidden_BL = hidden_masks() if kind == 'equal' else RAGGED_BL
    mask = TokenMask.from_hidden(hidden_BL, 4) if kind == 'equal' else TokenMask(hidden_BL)
    features = network(poison(images, hidden_BL), mask, taps=('input:0', 'output'))
    full = network.embed(images, None)
    wanted = full.clone()
    for b, row in enumerate(hidden_BL.tolist()):
        for index, hidden in enumerate(row):
            if hidden:
                wanted[b, index + 1] = network.mask_token[0, 0] + network.pos_embed[0, index + 1]
    close(features.tokens('input:0'), wanted)
    assert features.tokens('output').isfinite().all()
    assert features.mask is None  # the tokens are the full grid
    assert torch.equal(
        network(images, None).tokens('output'), network(images, TokenMask(hidden_BL & False)).tokens('output')
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(img_size=15), 'img_size=15 is not divisible by patch_size=4. Use 12 or another patch size'),
        (dict(position='rope'), r"position='rope': use one of \['sincos'"),
        (dict(arch='giant'), "Unknown arch='giant': choose from"),
        (dict(arch=dict(width=32, depth=3)), 'the dict needs width, depth and num_heads'),
        (dict(arch=dict(width=32, depth=3, num_heads=4, heads=4)), 'the dict needs width, depth and num_heads'),
        (dict(arch=dict(width=30, depth=3, num_heads=4)), 'width a multiple of num_heads'),
        (dict(arch=dict(width=32, depth=2.5, num_heads=4)), 'sizes must be positive, whole except mlp_ratio'),
        (dict(img_size=(64,)), r'img_size=\(64,\): give the side of a square image, or \(height, width\)'),
        (dict(img_size=(16, 16, 16)), r'img_size=\(16, 16, 16\): give the side'),
        (dict(img_size=16.0), 'img_size=16.0: give the side'),
        (dict(arch=dict(width=32, depth=0, num_heads=4)), 'sizes must be positive'),
    ],
)
def test_vision_transformer__wrong_options(vit_options, options, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**vit_options, **options})


def test_forward__other_image_size_is_refused(network):
    with pytest.raises(ValueError, match=r'built for img_size=16, got images of \(16, 20\)'):
        network(torch.zeros(1, 3, 16, 20, dtype=torch.float64))


@pytest.mark.parametrize('name', ['ti', 's', 'b', 'l', 'h'])
def test_resolve_arch__published_sizes(name):
    sizes = {'ti': (192, 12, 3), 's': (384, 12, 6), 'b': (768, 12, 12), 'l': (1024, 24, 16), 'h': (1280, 32, 16)}
    arch = resolve_arch(name)
    assert (arch.width, arch.depth, arch.num_heads, arch.mlp_ratio) == (*sizes[name], 4.0)
    assert resolve_arch(arch) is arch
    assert resolve_arch(dict(width=8, depth=1, num_heads=2)) == Arch(8, 1, 2)


def test_init_weights__pretrained_without_a_file(vit_options):
    with pytest.raises(ValueError, match='add checkpoint=FILE'):
        VisionTransformer(**vit_options, init_cfg=dict(type='Pretrained')).init_weights()


def test_classifier__refuses_a_projection(vit_options):
    with pytest.raises(ValueError, match='the features are not projected. Leave it out'):
        ClassifierViT(**vit_options, projection=5)
