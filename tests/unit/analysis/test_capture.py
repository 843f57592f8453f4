"""Attention and tokens read from networks with fused attention, against explicit softmax and the networks' own taps."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from mmpretrain.models import VisionTransformer as HostViT
from torch.nn import functional as F
from torchvision.models import resnet18

from mkd_plugin.analysis import (
    AttentionStatistics,
    FourierAmplitude,
    PerLayer,
    blocks_of,
    explicit_attention,
    run_watched,
)
from mkd_plugin.models.students import ClassifierViT
from mkd_plugin.models.vit import VisionTransformer

ARCH = dict(width=32, depth=3, num_heads=4)
BENCHMARKS = Path(__file__).resolve().parents[3] / 'benchmarks'


def collect():
    """A dict of lists, and the callback that fills it."""
    found = {}
    return found, lambda name, values: found.setdefault(name, []).append(values)


def ours(kind=VisionTransformer, **options):
    """A tiny network whose zero biases and unit norms have moved: they would hide mistakes."""
    model = kind(arch=ARCH, patch_size=4, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def softmax_by_hand(query, key, bias=0.0):
    """One query and key at a time."""
    logits = torch.zeros(*query.shape[:3], key.shape[2], dtype=torch.float64)
    for i in range(query.shape[2]):
        for j in range(key.shape[2]):
            logits[:, :, i, j] = (query[:, :, i] * key[:, :, j]).sum(-1) / query.shape[-1] ** 0.5
    weights = (logits + bias).exp()
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    'options',
    [
        dict(img_size=16),
        dict(img_size=(8, 16), num_registers=2, distillation_token=True),
        dict(img_size=16, relative_position='per_block'),
        dict(img_size=(8, 12), relative_position='shared', position='none'),
    ],
)
def test_run_watched__attention_of_a_fused_network(options):
    """Equal to softmax(QKᵀ/√K + relative bias) of the queries and keys at the tap, for nine images."""
    model = ours(**options)
    images = torch.randn(9, 3, *model.image_hw, dtype=torch.float64)
    found, on_attention = collect()
    run_watched(model, images, on_attention=on_attention)
    taps = [f'relation:{i}' for i in range(3)]
    features = model(images, taps=taps)
    assert list(found) == ['block:0', 'block:1', 'block:2']
    for index, tap in enumerate(taps):
        bias = model.rel_pos_bias or model.layers[index].attn.rel_pos_bias
        wanted = softmax_by_hand(features.taps[tap].q_BHNK, features.taps[tap].k_BHNK, 0.0 if bias is None else bias())
        torch.testing.assert_close(torch.cat(found[f'block:{index}']), wanted, rtol=1e-10, atol=1e-12)


def test_run_watched__relative_bias_matters():
    """Without it the attention would be another: the test above can fail."""
    model = ours(img_size=16, relative_position='shared')
    features = model(torch.randn(1, 3, 16, 16, dtype=torch.float64), taps=('relation:0',)).taps['relation:0']
    plain = explicit_attention(features.q_BHNK, features.k_BHNK)
    biased = explicit_attention(features.q_BHNK, features.k_BHNK, bias=model.rel_pos_bias())
    assert (plain - biased).abs().max() > 1e-3


def test_run_watched__timms_vit():
    """The attention of the first block from timm's own weights; 14 × 14 pixels in patches of 7, and a hook's tokens."""
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=14, patch_size=7, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).double()
    images = torch.randn(5, 3, 14, 14, dtype=torch.float64)
    found, on_attention = collect()
    tokens, on_tokens = collect()
    output = run_watched(model, images, on_attention=on_attention, on_tokens=on_tokens)
    torch.testing.assert_close(output, model.eval()(images))
    block = model.blocks[0]
    qkv = block.attn.qkv(block.norm1(tokens['input:0'][0])).view(5, 5, 3, 3, 8).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(torch.cat(found['block:0']), softmax_by_hand(qkv[0], qkv[1]), rtol=1e-10, atol=1e-12)
    middle = tokens['input:0'][0] + block.attn(block.norm1(tokens['input:0'][0]))
    torch.testing.assert_close(tokens['middle:0'][0], middle)
    assert list(tokens) == ['input:0', 'middle:0', 'block:0', 'middle:1', 'block:1']


def test_run_watched__mmpretrains_vit():
    arch = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
    host = HostViT(arch=arch, img_size=16, patch_size=4).double()
    attention, on_attention = collect()
    tokens, on_tokens = collect()
    run_watched(host, torch.randn(2, 3, 16, 16, dtype=torch.float64), on_attention=on_attention, on_tokens=on_tokens)
    assert list(attention) == ['block:0', 'block:1'] and attention['block:1'][0].shape == (2, 4, 17, 17)
    torch.testing.assert_close(host.layers[1](tokens['block:0'][0]), tokens['block:1'][0])


@pytest.mark.parametrize('kind', [VisionTransformer, ClassifierViT])
def test_run_watched__tokens_equal_the_taps(kind):
    """Between the blocks as at the taps, inside them after the attention residual; with drop path in the config."""
    model = ours(kind, img_size=(8, 16), drop_path_rate=0.9).train()
    images = torch.randn(3, 3, 8, 16, dtype=torch.float64)
    found, on_tokens = collect()
    run_watched(model, images, on_tokens=on_tokens)
    assert all(module.training for module in model.modules())
    assert list(found) == ['input:0', *(f'{part}:{i}' for i in range(3) for part in ('middle', 'block'))]
    taps = ['input:0', 'block:0', 'block:1', 'block:2', 'attention:0', 'attention:1', 'attention:2']
    features = VisionTransformer.forward(model.eval(), images, taps=taps)
    for name in taps[:4]:
        torch.testing.assert_close(found[name][0], features.tokens(name))
    for index, before in enumerate(taps[:3]):
        middle = features.tokens(before) + features.tokens(f'attention:{index}')
        torch.testing.assert_close(found[f'middle:{index}'][0], middle)


def test_run_watched__streams_into_accumulators():
    """A report's loop: statistics of every layer over batches of 3 and 2 equal those of 5 at once; nothing stays hooked."""
    model = ours(img_size=(8, 16), num_registers=1)
    images = torch.randn(5, 3, 8, 16, dtype=torch.float64)
    options = dict(grid=model.grid, num_prefix=model.num_prefix)

    def measure(batches):
        attention = PerLayer(lambda name: AttentionStatistics(**options, patch_size=4, flavour='dbot', name=name))
        maps = PerLayer(lambda name: FourierAmplitude(**options, name=name))
        for batch in batches:
            run_watched(model, batch, on_attention=attention, on_tokens=maps)
        return attention.results(), maps.results()

    (split, split_maps), (once, once_maps) = measure(images.split(3)), measure([images])
    assert len(split) == 3 and len(split_maps) == 7
    for name, wanted in once.items():
        assert split[name].images == 5
        torch.testing.assert_close(split[name].distance_H, wanted.distance_H, rtol=1e-12, atol=0)
        torch.testing.assert_close(split[name].nmi_H, wanted.nmi_H, rtol=1e-9, atol=0)
    for name, wanted in once_maps.items():
        torch.testing.assert_close(split_maps[name].relative_F, wanted.relative_F, rtol=1e-9, atol=1e-11)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_run_watched__not_finite_names_the_block():
    model = ours(img_size=16)
    with torch.no_grad():
        model.layers[1].attn.qkv.bias[3] = torch.nan
    attention = PerLayer(lambda name: AttentionStatistics(grid=(4, 4), patch_size=4, flavour='dbot', name=name))
    with pytest.raises(ValueError, match='block:1: 289 of 1156 values are NaN'):
        run_watched(model, torch.randn(1, 3, 16, 16, dtype=torch.float64), on_attention=attention)
    assert not any(module._forward_hooks for module in model.modules())


def test_run_watched__a_resnet_has_no_attention():
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match='ResNet computed no fused attention.*leave out the measurements of attention'):
        run_watched(resnet18(), images, on_attention=lambda name, values: None)
    with pytest.raises(ValueError, match='ResNet has no list of pre-norm transformer blocks'):
        run_watched(resnet18(), images, on_tokens=lambda name, values: None)


def test_run_watched__causal_attention_is_refused():
    class Text(torch.nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    with pytest.raises(ValueError, match='block:0: causal, grouped'):
        run_watched(Text(), torch.randn(1, 2, 3, 4), on_attention=lambda name, values: None)


@pytest.mark.parametrize('mask', [torch.rand(3, 5) < 0.7, torch.rand(6, 1, 3, 5) < 0.7, torch.randn(6, 2, 3, 5)])
def test_run_watched__masks_of_each_image(mask):
    """Boolean and additive, shared and one an image: times the values it is what the fused kernel gives."""
    if mask.dtype == torch.bool:
        mask[..., 0] = True
    q, k, v = torch.randn(6, 2, 3, 4), torch.randn(6, 2, 5, 4), torch.randn(6, 2, 5, 4)

    class Masked(torch.nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, k, v, attn_mask=mask, scale=0.3)

    found, on_attention = collect()
    output = run_watched(Masked(), q, on_attention=on_attention)
    torch.testing.assert_close(torch.cat(found['block:0']) @ v, output, rtol=1e-5, atol=1e-6)


def test_blocks_of__the_network_inside_another():
    model = ours(img_size=16)
    assert [block for block, _ in blocks_of(torch.nn.Sequential(model))] == list(model.layers)
    assert [norm for _, norm in blocks_of(model)] == [block.ln2 for block in model.layers]


def test_run_watched__memory_is_below_one_layer(monkeypatch):
    """What is alive at once beside queries, keys and output, for 32 images: less than half of the layer's attention."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from workload import LiveMemory

    class Layer(torch.nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(32, 4, 101, 8)
    attention = PerLayer(lambda name: AttentionStatistics(grid=(10, 10), patch_size=4, flavour='dbot', name=name))
    with LiveMemory([x]) as memory:
        run_watched(Layer(), x, on_attention=attention)
    one_layer = 32 * 4 * 101 * 101 * 4
    assert one_layer / 32 < memory.peak < 0.5 * one_layer
    assert attention.results()['block:0'].images == 32
