"""Options of BEiT, CLIP, DeiT and DINOv2 against explicit computations."""

from __future__ import annotations

import pytest
import torch
from timm.layers import QuickGELU

from mkd_plugin.models.students import MaskTokenViT, VisibleViT
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.structures import Region, TokenMask

ARCH = dict(width=16, depth=3, num_heads=2)
SIZE = dict(arch=ARCH, img_size=(8, 12), patch_size=4, in_channels=1)  # a grid of 2 × 3


def network_of(cls=VisionTransformer, **options):
    torch.manual_seed(0)
    network = cls(**SIZE, **options).double().eval()
    with torch.no_grad():  # nonzero values, so that unused parameters are noticed
        for name, parameter in network.named_parameters():
            if 'table' in name or 'gamma' in name or 'bias' in name or name.startswith('pre_norm'):
                parameter.normal_(1.0, 0.5)
    return network


def images_of(batch=2):
    return torch.randn(batch, 1, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attention_by_hand(attn, x_BND, bias_HNN):
    batch, length, width = x_BND.shape
    q, k, v = attn.qkv(x_BND).view(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias_HNN
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
    return attn.proj(out)


def bias_by_hand(table_EH, grid):
    """BEiT's layout: (2h − 1)(2w − 1) offsets, then cls → patch, patch → cls, cls → cls."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    length = 1 + len(places)
    bias = torch.zeros(table_EH.shape[1], length, length, dtype=table_EH.dtype)
    bias[:, 0, 1:] = table_EH[-3, :, None]
    bias[:, 1:, 0] = table_EH[-2, :, None]
    bias[:, 0, 0] = table_EH[-1]
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            offset = (row - other_row + grid[0] - 1) * (2 * grid[1] - 1) + column - other_column + grid[1] - 1
            bias[:, 1 + i, 1 + j] = table_EH[offset]
    return bias


@pytest.mark.parametrize('kind', ['shared', 'per_block'])
def test_relative_position__equals_explicit_softmax(kind):
    network = network_of(relative_position=kind, position='none', layer_scale=0.3)
    x_BND = network.embed(images_of(), None)
    for block in network.layers:
        holder = network if kind == 'shared' else block.attn
        bias_HNN = bias_by_hand(holder.rel_pos_bias.relative_position_bias_table, (2, 3))
        x_BND = x_BND + block.attn.gamma1.weight * attention_by_hand(block.attn, block.ln1(x_BND), bias_HNN)
        x_BND = x_BND + block.ffn.gamma2.weight * block.ffn.layers(block.ln2(x_BND))
    torch.testing.assert_close(network(images_of(), taps=('block:-1',)).tokens('block:-1'), x_BND)


def test_relative_position__shared_has_one_table_and_no_preference_at_first():
    network = VisionTransformer(**SIZE, relative_position='shared')
    tables = {name: value for name, value in network.state_dict().items() if 'rel_pos' in name}
    assert {name: tuple(value.shape) for name, value in tables.items()} == {
        'rel_pos_bias.relative_position_bias_table': (3 * 5 + 3, 2)
    }
    assert not any(value.any() for value in tables.values())


@pytest.mark.parametrize('kind', ['shared', 'per_block'])
def test_relative_position__last_block_of_a_region_gives_the_same_rows(kind):
    network = network_of(MaskTokenViT, relative_position=kind, position='none')
    mask = TokenMask.from_kept(torch.tensor([[0, 4], [1, 5]]), 6)
    region = Region.parse('hidden+cls').tokens(mask)
    whole = network(images_of(), mask).select('output', region)
    torch.testing.assert_close(network(images_of(), mask, region=region).select('output', region), whole)


def test_pre_norm_quick_gelu_projection__as_clip_computes_them():
    network = network_of(position='learned', pre_norm=True, activation='quick_gelu', projection=5, norm_eps=1e-5)
    assert isinstance(network.layers[0].ffn.layers[0][1], QuickGELU)
    found = network(images_of(), taps=('input:0', 'block:-1', 'output', 'projected'))
    patches = network.patch_embed.projection(images_of()).flatten(2).transpose(1, 2)
    embedded = torch.cat([network.cls_token.expand(2, -1, -1), patches], 1) + network.pos_embed
    torch.testing.assert_close(
        found.tokens('input:0'),
        torch.nn.functional.layer_norm(embedded, (16,), network.pre_norm.weight, network.pre_norm.bias, 1e-5),
    )
    torch.testing.assert_close(found.tokens('output'), network.ln1(found.tokens('block:-1')))
    torch.testing.assert_close(found.tokens('projected'), found.tokens('output') @ network.proj.weight.T)
    assert network.tap_spec('projected').channels == 5


def test_prefix_tokens__distillation_has_a_position_and_registers_have_none():
    network = network_of(position='learned', distillation_token=True, num_registers=2)
    assert (network.num_prefix, tuple(network.pos_embed.shape)) == (4, (1, 2 + 6, 16))
    tokens = network.embed(images_of(), None)
    wanted = torch.cat(
        [
            network.cls_token + network.pos_embed[:, :1],
            network.dist_token + network.pos_embed[:, 1:2],
            network.register_tokens,
        ],
        dim=1,
    )
    torch.testing.assert_close(tokens[:, :4], wanted.expand(2, -1, -1))
    patches = network.patch_embed.projection(images_of()).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[:, 4:], patches + network.pos_embed[:, 2:])
    region = Region.parse('all+cls').tokens(TokenMask.from_kept(torch.arange(6).expand(2, -1), 6))
    features = network(images_of())
    whole = features.tokens('output')
    torch.testing.assert_close(features.select('output', region), torch.cat([whole[:, :1], whole[:, 4:]], 1))


def test_taps__inside_a_block_equal_hooks_on_its_modules():
    network, seen = network_of(), {}
    for index, block in enumerate(network.layers):
        block.attn.qkv.register_forward_hook(lambda _, __, out, i=index: seen.update({f'qkv:{i}': out}))
        block.attn.proj.register_forward_hook(lambda _, __, out, i=index: seen.update({f'attention:{i}': out}))
    network(images_of())
    names = [f'{kind}:{index}' for index in range(3) for kind in ('qkv', 'attention')]
    found = network(images_of(), taps=names)
    for name in names:
        torch.testing.assert_close(found.tokens(name), seen[name])
    assert network.tap_spec('qkv:1').channels == 48
    assert network.tap_spec('attention:1').channels == 16


@pytest.mark.parametrize('kind', ['qkv', 'attention', 'relation', 'logit'])
def test_taps__alone_they_stop_inside_their_block(kind):
    network, ran = network_of(relative_position='shared'), []
    for index, block in enumerate(network.layers):
        block.ffn.register_forward_hook(lambda *_, i=index: ran.append(i))
    every = network(images_of(), taps=(f'{kind}:1', 'output')).taps[f'{kind}:1'].at(slice(None))
    ran.clear()
    alone = network(images_of(), taps=(f'{kind}:1',)).taps[f'{kind}:1'].at(slice(None))
    assert ran == [0]
    torch.testing.assert_close(alone, every)


def test_taps__logit_is_the_relation_over_root_k():
    found = network_of()(images_of(), taps=('relation:1', 'logit:1'))
    relation, logit = (found.taps[name].at(slice(None)) for name in ('relation:1', 'logit:1'))
    torch.testing.assert_close(logit, relation / 8**0.5)


@pytest.mark.parametrize('count', [1, 2, 3])
def test_taps__mean_of_the_last_blocks(count):
    network = network_of()
    blocks = [f'block:{index}' for index in range(3)]
    found = network(images_of(), taps=(*blocks, f'mean:last-{count}'))
    wanted = torch.stack([found.tokens(name) for name in blocks[-count:]]).mean(0)
    torch.testing.assert_close(found.tokens(f'mean:last-{count}'), wanted)


@pytest.mark.parametrize(
    ('tap', 'message'),
    [
        ('mean:last-4', r"'mean:last-4' is out of range: the network has 3 blocks, so k must lie in \[1, 3\]"),
        ('mean:last-0', 'out of range'),
        ('attention:3', "'attention:3' is out of range"),
        ('projected', "'projected': the network has no projection"),
        ('values:1', "Unknown tap 'values:1'"),
    ],
)
def test_taps__wrong(tap, message):
    with pytest.raises(ValueError, match=message):
        network_of().tap_spec(tap)


@pytest.mark.parametrize(
    ('cls', 'options', 'message'),
    [
        (VisionTransformer, dict(relative_position='global'), "relative_position='global': use one of"),
        (VisionTransformer, dict(activation='relu'), "activation='relu': use one of"),
        (VisionTransformer, dict(relative_position='shared', num_registers=1), 'supports cls and patches only'),
        (VisionTransformer, dict(relative_position='shared', distillation_token=True), 'supports cls and patches only'),
        (VisibleViT, dict(relative_position='shared'), 'needs the full grid. Use a MaskTokenViT'),
    ],
)
def test_vision_transformer__wrong_combinations(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**SIZE, **options)


def test_options__rebuild_the_network():
    network = network_of(position='learned', pre_norm=True, activation='quick_gelu', projection=5, num_registers=2)
    again = VisionTransformer(**network.options).double().eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(images_of()).tokens('output'), network(images_of()).tokens('output'))
