"""Rotary positions, gated MLPs, inner norms, registers and no cls: equal to timm, whole and masked, and through every part."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.networks import scatter_weights
from helpers.networks_modern import NETWORKS, ours_of, timm_network
from torch.nn import functional as F

from mkd_plugin.checkpoint.load import fill_network
from mkd_plugin.models.students import ClassifierViT, MaskTokenViT, PlainViT, VisibleViT
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.models.vit.attention import QueryValueBias
from mkd_plugin.models.vit.rotary import FORMS, turn_halves, turn_pairs
from mkd_plugin.structures import Region, TokenMask, take


def pair_of(name, cls=VisionTransformer, **changes):
    """timm's network and ours with its weights, both in float64."""
    theirs = timm_network(name, **changes).double()
    ours = cls(**ours_of(name, **changes)).double().eval()
    fill_network(
        ours, {'state_dict': theirs.state_dict()}, 'timm', grid=ours.grid, allow_missing=('mask_token', 'ln2.*')
    )
    return theirs, ours


def images_of(network, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, *network.image_hw, dtype=torch.float64, generator=generator)


def error(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize('size', [224, (224, 160)], ids=['square', 'other'])
@pytest.mark.parametrize('name', NETWORKS)
@torch.no_grad()
def test_forward__is_timms(name, size):
    theirs, ours = pair_of(name, img_size=size, patch_size=16)
    images = images_of(ours, 1)
    last, blocks = theirs.forward_intermediates(images, indices=[0, 2], output_fmt='NLC', return_prefix_tokens=False)
    taps = ('block:0', 'block:2', *(['output'] if ours.options['final_norm'] else []))
    features = ours(images, taps=taps)
    for tap, wanted in zip(taps, blocks, strict=False):
        assert error(features.tokens(tap)[:, ours.num_prefix :], wanted) < 1e-6
    if 'output' in taps:
        assert error(features.tokens('output'), last) < 1e-6


@pytest.mark.parametrize('name', ['dinov3_qkvb', 'eva02_clip', 'siglip2'])
@torch.no_grad()
def test_forward__of_visible_patches_is_timms_blocks_on_the_gathered_tokens(name):
    """timm's own blocks, given the visible tokens and the rotations of their places."""
    theirs, ours = pair_of(name, VisibleViT, img_size=(32, 24))
    images = images_of(ours)
    mask = TokenMask.from_kept(torch.tensor([[1, 5, 6, 11], [0, 2, 7, 8]]), 12)
    result = theirs._pos_embed(theirs.patch_embed(images))
    tokens, angles = result if isinstance(result, tuple) else (result, None)
    prefix = ours.num_prefix
    tokens = torch.cat([tokens[:, :prefix], take(tokens[:, prefix:], mask.ids_keep_BV)], dim=1)
    rope = {} if angles is None else dict(rope=take(angles.expand(2, -1, -1), mask.ids_keep_BV).unsqueeze(1))
    for block in theirs.blocks:
        tokens = block(tokens, **rope)
    assert error(ours(images, mask).tokens('output'), theirs.norm(tokens)) < 1e-6


@pytest.mark.parametrize('cls', [VisibleViT, MaskTokenViT, PlainViT])
@pytest.mark.parametrize('name', ['dinov3_qkvb', 'eva02_base', 'siglip'])
@torch.no_grad()
def test_students__a_mask_that_hides_nothing_changes_nothing(name, cls):
    _, ours = pair_of(name, cls)
    images = images_of(ours)
    mask = TokenMask.from_hidden(torch.zeros(2, 16, dtype=torch.bool), 16)
    torch.testing.assert_close(
        ours(images, mask, ('block:2',)).tokens('block:2'), ours(images, None, ('block:2',)).tokens('block:2')
    )


@pytest.mark.parametrize('name', ['dinov3_qkvb', 'eva02_clip', 'siglip'])
@torch.no_grad()
def test_forward__last_block_of_a_region_gives_the_same_rows(name):
    _, ours = pair_of(name, MaskTokenViT)
    images, mask = images_of(ours), TokenMask.from_kept(torch.tensor([[0, 4], [1, 5]]), 16)
    region = Region.parse('hidden' if ours.cls_token is None else 'hidden+cls').tokens(mask)
    whole = ours(images, mask).select('output', region)
    torch.testing.assert_close(ours(images, mask, region=region).select('output', region), whole)


@pytest.mark.parametrize('name', ['dinov3_qkvb', 'eva02_clip'])
@torch.no_grad()
def test_taps__logits_are_those_that_attention_uses(name):
    """Inside their block and on the way: softmax of the logits times the values is the attention's output."""
    _, ours = pair_of(name)
    images = images_of(ours)
    features = ours(images, taps=('logit:1', 'qkv:1', 'attention:1', 'block:2'))
    alone = ours(images, taps=('logit:1', 'qkv:1'))
    for tap in ('logit:1', 'qkv:1'):
        torch.testing.assert_close(alone.tokens(tap), features.tokens(tap))
    layer = ours.layers[1].attn
    values = features.tokens('qkv:1').chunk(3, dim=-1)[2].unflatten(2, (4, -1)).transpose(1, 2)
    mixed = (features.tokens('logit:1').softmax(-1) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.gamma1(layer.proj(layer.inner_norm(mixed))), features.tokens('attention:1'))


@pytest.mark.parametrize(('turn', 'partner'), [(turn_halves, 4), (turn_pairs, 1)])
def test_turn__is_a_rotation_of_two_channels(turn, partner):
    first = 0
    angles = torch.tensor([[0.3, 1.0, 2.0, -1.0]], dtype=torch.float64)
    x = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    x[..., first] = 1
    turned = turn(x, torch.cat([angles.cos(), angles.sin()], dim=-1).unsqueeze(0)).flatten()
    assert turned[first] == angles[0, 0].cos() and turned[first + partner] == angles[0, 0].sin()
    assert turned.square().sum().item() == pytest.approx(1)


def test_angles__follow_the_published_formulas():
    """DINOv3: centres of patches in (−1, 1), periods 100^(j / (K/4)). EVA-02: 16 places a side, base 10000."""
    places, exponents = torch.arange(4.0)[:, None], torch.arange(2.0) / 2
    wanted = [[2 * torch.pi * (2 * (i + 0.5) / 4 - 1) / 100 ** (j / 2) for j in range(2)] for i in range(4)]
    torch.testing.assert_close(FORMS['dinov3'].angles(places, 4, exponents), torch.tensor(wanted))
    wanted = [[16 * i / 4 / 10000 ** (j / 2) for j in range(2)] for i in range(4)]
    torch.testing.assert_close(FORMS['eva02'].angles(places, 4, exponents), torch.tensor(wanted))


def test_key_bias__stays_zero_and_gets_no_gradient():
    network = VisionTransformer(**ours_of('dinov3')).train()
    layer = network.layers[0].attn.qkv
    assert isinstance(layer, QueryValueBias)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 32, 32)).tokens('output').square().sum().backward()
        optimizer.step()
    query, key, value = layer.bias.detach().chunk(3)
    assert query.any() and value.any() and not key.any()
    with torch.no_grad():  # whatever a file has there
        before = network.eval()(torch.ones(1, 3, 32, 32)).tokens('output')
        layer.bias[48:96] = 7
        assert torch.equal(network(torch.ones(1, 3, 32, 32)).tokens('output'), before)


@pytest.mark.parametrize('recompute', [True, 'selective'])
@pytest.mark.parametrize('name', ['dinov3_plus', 'eva02_clip'])
def test_activation_checkpointing__same_values_and_gradients(name, recompute):
    mask, results = TokenMask.from_kept(torch.tensor([[1, 5, 6], [0, 2, 7]]), 16), []
    for options in ({}, dict(activation_checkpointing=recompute)):
        torch.manual_seed(0)
        network = scatter_weights(VisibleViT(**ours_of(name), **options)).double()
        loss = network(images_of(network), mask).tokens('output').square().sum()
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in network.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_rotary__under_autocast_keeps_the_type_of_queries():
    network = VisibleViT(**ours_of('dinov3')).eval()
    with torch.autocast('cpu', torch.bfloat16):
        features = network(torch.randn(1, 3, 32, 32), taps=('relation:1', 'output'))
    assert features.taps['relation:1'].q_BHNK.dtype == torch.bfloat16
    moved = copy.deepcopy(network).half()
    assert moved.rotary.turns.dtype == torch.float16 and network.rotary.turns.dtype == torch.float32
    assert not [name for name in network.state_dict() if 'turns' in name or 'used' in name]


@pytest.mark.parametrize('name', ['dinov3', 'siglip2'])
@torch.no_grad()
def test_classifier__pools_the_patches(name):
    theirs, ours = pair_of(name, ClassifierViT)
    images = images_of(ours)
    [block] = theirs.forward_intermediates(images, indices=[2], output_fmt='NLC', intermediates_only=True)
    torch.testing.assert_close(ours(images)[0], F.layer_norm(block.mean(1), (48,), eps=1e-6), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(rope='axial'), r"rope='axial': use one of \[None, 'dinov3', 'eva02'\]"),
        (dict(inner_norm='attention'), r"inner_norm='attention': use one of \[None, 'mlp', 'both'\]"),
        (dict(rope='eva02', arch=dict(width=60, depth=1, num_heads=10)), 'heads of a multiple of 4 channels, got 6'),
        (dict(cls_token=False, num_registers=4), 'cls_token=False: remove distillation_token and num_registers'),
        (dict(cls_token=False, relative_position='shared'), 'and keep cls_token'),
    ],
)
def test_vision_transformer__refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**dict(img_size=32, patch_size=8), **options})


def test_tap_spec__says_what_the_network_lacks():
    assert not VisionTransformer(**ours_of('siglip')).tap_spec('output').cls
    assert VisionTransformer(**ours_of('dinov3')).tap_spec('relation:0').cls
    with pytest.raises(ValueError, match="Tap 'output': the network has no final norm. Use 'block:-1'"):
        VisionTransformer(**ours_of('eva02_base')).tap_spec('output')
