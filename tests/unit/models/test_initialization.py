"""Initial weights of the ViT and of heads: MAE's and BEiT's distributions, and drawing them anew."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.networks import scatter_weights

from mkd_plugin.models.students import ClassifierViT, MaskTokenViT, PlainViT, VisibleViT
from mkd_plugin.models.vit import VisionTransformer, sincos_positions
from mkd_plugin.registry import MODELS


@pytest.fixture
def network(vit_options) -> VisionTransformer:
    return scatter_weights(VisionTransformer(position='learned', **vit_options)).double().eval()


def test_reset_parameters__maes_initialisation():
    network = VisionTransformer(arch=dict(width=192, depth=1, num_heads=2), img_size=16, patch_size=8)
    linears = {'patch_embed.projection': (3 * 8 * 8, 192)}  # (fan in, fan out); qkv counts as one matrix
    linears |= {'layers.0.attn.qkv': (192, 576), 'layers.0.attn.proj': (192, 192)}
    linears |= {'layers.0.ffn.layers.0.0': (192, 768), 'layers.0.ffn.layers.1': (768, 192)}
    for name, fans in linears.items():
        weight, bound = network.get_submodule(name).weight.detach(), math.sqrt(6 / sum(fans))
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3), name
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name  # uniform
    for name, parameter in network.named_parameters():
        if name.endswith('.bias'):
            assert not parameter.any(), name
        elif 'ln' in name:
            assert (parameter == 1).all(), name
    assert network.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert 'pos_embed' not in dict(network.named_parameters())
    assert torch.equal(network.pos_embed, sincos_positions((2, 2), 192))


@pytest.mark.parametrize('position', ['learned', 'sincos'])
@pytest.mark.parametrize('kind', [VisibleViT, MaskTokenViT, ClassifierViT])
def test_reset_parameters__forgets_everything(vit_options, kind, position):
    """Weights after a reset depend on the seed only, not on previous training or loading."""
    states = []
    for garbage in (7.0, -1.0):
        network = kind(position=position, **vit_options)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.fill_(garbage)
        torch.manual_seed(1)
        network.reset_parameters()
        states.append(network.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def truncated_std(deviation, cut):
    """Standard deviation of a normal distribution cut at ± ``cut``, by numerical integration."""
    x = torch.linspace(-cut, cut, 200_001, dtype=torch.float64)
    density = torch.exp(-x.square() / (2 * deviation**2))
    return math.sqrt((x.square() * density).sum() / density.sum())


@pytest.mark.parametrize('kind', [MaskTokenViT, PlainViT])
def test_reset_parameters__beits_initialisation(kind):
    """Symmetric students: normal(0.02) cut at one standard deviation, both output layers over √(2 · layer)."""
    network = kind(arch=dict(width=192, depth=3, num_heads=2), img_size=16, patch_size=8, position='learned')
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7.0)
    network.reset_parameters()
    std = truncated_std(0.02, 0.02)
    assert std == pytest.approx(0.0108, abs=5e-5)  # measured on the official network: 0.011 for qkv
    drawn = {'patch_embed.projection.weight': 1.0, 'cls_token': 1.0, 'pos_embed': 1.0}
    drawn |= {'mask_token': 1.0} if kind is MaskTokenViT else {}
    for index in range(3):
        drawn |= {f'layers.{index}.{name}.weight': 1.0 for name in ('attn.qkv', 'ffn.layers.0.0')}
        scale = 1 / math.sqrt(2 * (index + 1))
        drawn |= {f'layers.{index}.{name}.weight': scale for name in ('attn.proj', 'ffn.layers.1')}
    for name, parameter in network.named_parameters():
        if name in drawn:
            assert parameter.abs().max() <= 0.02 * drawn[name] * (1 + 1e-6), name
            assert parameter.std().item() == pytest.approx(
                std * drawn[name], rel=0.02 if parameter.dim() == 2 else 0.15
            ), name
        else:
            assert (parameter == (1.0 if 'ln' in name and name.endswith('weight') else 0.0)).all(), name


def test_reset_parameters__vit_b_has_the_official_deviations():
    """Projection of attention, standard deviation: 0.0076 in the first block, 0.0022 in the last."""
    network = MaskTokenViT(arch='b', img_size=32)
    first, last = (network.layers[index].attn.proj.weight.std().item() for index in (0, 11))
    assert (first, last) == (pytest.approx(0.0076, abs=5e-5), pytest.approx(0.0022, abs=5e-5))
    assert network.layers[5].attn.qkv.weight.std().item() == pytest.approx(0.011, abs=5e-4)


@pytest.mark.parametrize('kind', [MaskTokenViT, VisibleViT])
def test_linear_head__starts_like_the_student(kind):
    masking = dict(type='RandomMasking', ratio=0.5)
    objective = dict(teacher='t', tap='output', student='output', loss=dict(type='MSELoss'), region='visible')
    arch = dict(width=192, depth=1, num_heads=2)
    model = MODELS.build(
        dict(
            type='MaskedDistiller',
            backbone=dict(type=kind.__name__, arch=arch, img_size=16, patch_size=8),
            masking=masking,
            teachers=dict(t=dict(type='ViTTeacher', arch=arch, patch_size=8, seed=0)),
            objectives=dict(feature=dict(head=dict(type='LinearHead'), **objective)),
        )
    )
    head = model.objectives['feature'].heads[0].linear
    wanted = truncated_std(0.02, 0.02) if kind is MaskTokenViT else math.sqrt(2 / 384)
    for _ in range(2):
        assert head.weight.std().item() == pytest.approx(wanted, rel=0.02)
        model.reset_student()
