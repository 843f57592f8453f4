"""Taps: their names, and their values against forward hooks and explicit products."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import scatter_weights
from torch import nn

from mkd_plugin.models.vit import VisionTransformer, parse_tap


@pytest.fixture
def network(vit_options) -> VisionTransformer:
    return scatter_weights(VisionTransformer(position='learned', **vit_options)).double().eval()


def close(found, wanted, tolerance=1e-10):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_forward__taps_equal_what_hooks_see(network, images):
    inputs, outputs = {}, {}
    for index, block in enumerate(network.layers):
        block.register_forward_pre_hook(lambda _, args, i=index: inputs.update({i: args[0]}))
        block.register_forward_hook(lambda *call, i=index: outputs.update({i: call[2][0]}))
    taps = ['input:0', 'input:1', 'input:-1', 'block:0', 'block:-2', 'block:2', 'output']
    features = network(images, taps=taps)
    wanted = [inputs[0], inputs[1], inputs[2], outputs[0], outputs[1], outputs[2], network.ln1(outputs[2])]
    for tap, value in zip(taps, wanted, strict=True):
        assert torch.equal(features.tokens(tap), value), tap


def relation_by_hand(network, tokens_BND, index):
    """Q·Kᵀ of a block from the rows of its packed projection, head by head."""
    block = network.layers[index]
    normed = nn.functional.layer_norm(tokens_BND, (32,), block.ln1.weight, block.ln1.bias, 1e-6)
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    relations = []
    for head in range(4):
        q_rows, k_rows = slice(8 * head, 8 * head + 8), slice(32 + 8 * head, 32 + 8 * head + 8)
        q = normed @ weight[q_rows].T + bias[q_rows]
        k = normed @ weight[k_rows].T + bias[k_rows]
        relations.append(torch.einsum('bid,bjd->bij', q, k))
    return torch.stack(relations, dim=1)


@pytest.mark.parametrize('others', [(), ('output',)], ids=['stops there', 'goes on'])
@pytest.mark.parametrize('index', [0, 1, 2])
def test_forward__relation_equals_queries_times_keys(network, images, index, others):
    features = network(images, taps=(f'relation:{index}', f'input:{index}', *others))
    wanted = relation_by_hand(network, features.tokens(f'input:{index}'), index)
    close(features.tokens(f'relation:{index}'), wanted)


@pytest.mark.parametrize(
    ('taps', 'blocks_run', 'final_norm'),
    [
        (('input:0',), 0, 0),
        (('relation:0',), 0, 0),
        (('block:0',), 1, 0),
        (('relation:2', 'block:0'), 2, 0),
        (('input:2', 'relation:1'), 2, 0),
        (('block:-1',), 3, 0),
        (('output', 'relation:-3'), 3, 1),
    ],
)
def test_forward__stops_after_the_highest_tap(network, images, taps, blocks_run, final_norm):
    ran = []
    for index, module in enumerate([*network.layers, network.ln1]):
        module.register_forward_hook(lambda *_, i=index: ran.append(i))
    network(images, taps=taps)
    assert ran == list(range(blocks_run)) + [3] * final_norm


def test_forward__depth_0_gives_the_embeddings(network, images):
    features = network(images, taps=('block:-1', 'input:0', 'output'), depth=0)
    embeddings = network.embed(images, None)
    assert torch.equal(features.tokens('block:-1'), embeddings)
    assert torch.equal(features.tokens('input:0'), embeddings)
    assert torch.equal(features.tokens('output'), network.ln1(embeddings))


def test_forward__depth_cuts_the_network(network, images):
    cut = network(images, taps=('block:-1', 'output'), depth=2)
    whole = network(images, taps=('block:1',)).tokens('block:1')
    assert torch.equal(cut.tokens('block:-1'), whole)
    assert torch.equal(cut.tokens('output'), network.ln1(whole))


@pytest.mark.parametrize(
    ('name', 'kind', 'position'),
    [
        ('input:0', 'tokens', 0),
        ('block:0', 'tokens', 1),
        ('block:-1', 'tokens', 3),
        ('input:-1', 'tokens', 2),
        ('relation:-2', 'relation', 1),
        ('output', 'output', 3),
    ],
)
def test_parse_tap__positions(name, kind, position):
    tap = parse_tap(name, 3)
    assert (tap.name, tap.kind, tap.position) == (name, kind, position)


@pytest.mark.parametrize('name', ['block:3', 'block:-4', 'input:3', 'relation:-4'])
def test_parse_tap__out_of_range(name):
    with pytest.raises(ValueError, match=rf"Tap '{name}' is out of range: .* 3 blocks, so i must lie in \[−3, 3\)"):
        parse_tap(name, 3)


@pytest.mark.parametrize('name', ['blocks:1', 'block', 'block:', 'block:one', 'outputs', 'block:1.5'])
def test_parse_tap__unknown_name(name):
    with pytest.raises(ValueError, match=f"Unknown tap '{name}': use 'output'"):
        parse_tap(name, 3)


@pytest.mark.parametrize('name', ['block:--1', 'block:²'])
def test_parse_tap__number_that_int_refuses(name):
    with pytest.raises(ValueError, match='Unknown tap'):
        parse_tap(name, 3)


@pytest.mark.parametrize('name', ['relation:0'])
def test_parse_tap__depth_0_has_no_relation(name):
    with pytest.raises(ValueError, match='out of range'):
        parse_tap(name, 0)


def test_tap_spec__of_the_network(network):
    assert [network.tap_spec(name).kind for name in ('output', 'block:0', 'relation:0')] == [
        'tokens',
        'tokens',
        'relation',
    ]
    assert [network.tap_spec(name).channels for name in ('output', 'input:0', 'relation:0')] == [32, 32, 4]
    with pytest.raises(ValueError, match='out of range'):
        network.tap_spec('block:3')
