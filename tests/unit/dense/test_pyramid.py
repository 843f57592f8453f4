"""The pyramids: against mmseg's with the same weights, against ViTDet's definition, and every stride and gradient."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn import functional as F

from mkd_plugin.dense import ScalePyramid, SimplePyramid
from mkd_plugin.registry import MODELS

BN = dict(type='BN')


def maps(count: int = 4, channels: int = 8, grid: tuple[int, int] = (25, 38)) -> list[torch.Tensor]:
    return [torch.randn(2, channels, *grid) for _ in range(count)]


def by_size(shapes, strides, grid=(25, 38), stride=16):
    """Whether the maps are those of an image of ``stride`` × ``grid`` pixels, sides rounded down."""
    return [tuple(shape[-2:]) for shape in shapes] == [
        tuple(side * stride // wanted for side in grid) for wanted in strides
    ]


def test_scale_pyramid__equals_mmsegs_with_the_same_weights():
    from mmseg.models.necks import Feature2Pyramid  # our own mmcv ops let it be imported where mmcv is not compiled

    ours, theirs = ScalePyramid(in_channels=8, norm_cfg=BN), Feature2Pyramid(embed_dim=8, norm_cfg=BN)
    renamed = {'rescale.0': 'upsample_4x', 'rescale.1': 'upsample_2x.0'}
    state = {f'{renamed[key[:9]]}{key[9:]}': value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    inputs = maps()
    for mode in (True, False):
        for mine, wanted in zip(ours.train(mode)(inputs), theirs.train(mode)(inputs), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def test_scale_pyramid__is_what_it_says_map_by_map():
    """Transposed convolutions written as products: each position becomes a 2 × 2 block of its own."""

    def double(layer: nn.ConvTranspose2d, map_BDhw: torch.Tensor) -> torch.Tensor:
        blocks = torch.einsum('bdhw,deij->behiwj', map_BDhw, layer.weight)
        return blocks.flatten(2, 3).flatten(3, 4) + layer.bias[:, None, None]

    pyramid, inputs = ScalePyramid(in_channels=4, norm_cfg=dict(type='GN', num_groups=2)).double(), maps(4, 4)
    inputs = [map_BDhw.double() for map_BDhw in inputs]
    first, norm, _, second = pyramid.rescale[0]
    between = F.group_norm(double(first, inputs[0]), 2, norm.weight, norm.bias)
    wanted = [
        double(second, between * 0.5 * (1 + torch.erf(between / 2**0.5))),
        double(pyramid.rescale[1], inputs[1]),
        inputs[2],
        inputs[3][..., :24, :38].unflatten(2, (12, 2)).unflatten(4, (19, 2)).amax(dim=(3, 5)),
    ]
    for mine, expected in zip(pyramid(inputs), wanted, strict=True):
        torch.testing.assert_close(mine, expected)


def test_scale_pyramid__strides_and_channels():
    out = ScalePyramid(in_channels=8, norm_cfg=BN)(maps())
    assert by_size([level.shape for level in out], (4, 8, 16, 32)) and {level.shape[1] for level in out} == {8}
    out = ScalePyramid(in_channels=8, scales=(2, 1, 0.5, 0.25), norm_cfg=BN)(maps(grid=(9, 7)))
    assert by_size([level.shape for level in out], (4, 8, 16, 32), (9, 7), stride=8)


def test_simple_pyramid__is_vitdets():
    """Each level from the last map: up or down, 1 × 1, norm, 3 × 3, norm; the sixth stride by every second position."""

    def norm(map_BDhw: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        centred = map_BDhw - map_BDhw.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    pyramid = SimplePyramid(in_channels=8, out_channels=6).double()
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    inputs = [map_BDhw.double() for map_BDhw in maps()]
    last, wanted = inputs[-1], []
    for level, (up, narrow, norm_1, mix, norm_2) in enumerate(pyramid.levels):
        if level == 0:
            first = F.conv_transpose2d(last, up[0].weight, up[0].bias, stride=2)
            scaled = F.conv_transpose2d(F.gelu(norm(first, up[1])), up[3].weight, up[3].bias, stride=2)
        elif level == 1:
            scaled = F.conv_transpose2d(last, up.weight, up.bias, stride=2)
        else:
            scaled = last if level == 2 else F.max_pool2d(last, 2)
        assert scaled.shape[1] == (2, 4, 8, 8)[level] and narrow.bias is None and mix.bias is None
        wanted.append(norm(F.conv2d(norm(F.conv2d(scaled, narrow.weight), norm_1), mix.weight, padding=1), norm_2))
    wanted.append(wanted[-1][..., ::2, ::2])
    out = pyramid(inputs)
    for mine, expected in zip(out, wanted, strict=True):
        torch.testing.assert_close(mine, expected)
    assert by_size([level.shape for level in out[:4]], (4, 8, 16, 32)) and out[4].shape == (2, 6, 6, 10)


@pytest.mark.parametrize('pyramid', [ScalePyramid(in_channels=8, norm_cfg=BN), SimplePyramid(in_channels=8)])
def test_pyramids__gradients_reach_every_parameter_and_every_map_that_is_read(pyramid):
    inputs = [map_BDhw.requires_grad_() for map_BDhw in maps()]
    sum((level * torch.randn_like(level)).sum() for level in pyramid(inputs)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pyramid.parameters())
    read = [map_BDhw.grad is not None and bool(map_BDhw.grad.any()) for map_BDhw in inputs]
    assert read == ([True] * 4 if isinstance(pyramid, ScalePyramid) else [False, False, False, True])


def test_pyramids__wrong_options_are_refused():
    with pytest.raises(ValueError, match=r'scales=\[4, 3\]: .*each of them one of \[4, 2, 1, 0.5, 0.25\]'):
        ScalePyramid(scales=(4, 3))
    with pytest.raises(ValueError, match='num_outs=3: there are 4 scales already'):
        SimplePyramid(num_outs=3)
    with pytest.raises(ValueError, match='has 4 scales.*got 3 maps: give the backbone as many out_indices'):
        ScalePyramid(in_channels=8, norm_cfg=BN)(maps(3))
    with pytest.raises(TypeError, match='in_channel'):
        ScalePyramid(in_channel=8)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_pyramids__are_built_from_a_hosts_scope(scope):
    """With their default norms; outside of a process group SyncBN is BatchNorm on a CPU, too."""
    with DefaultScope.overwrite_default_scope(scope):
        pyramid = MODELS.build(dict(type='mkd_plugin.ScalePyramid', in_channels=8))
        assert isinstance(pyramid.rescale[0][1], nn.SyncBatchNorm)
        assert len(MODELS.build(dict(type='mkd_plugin.SimplePyramid', in_channels=8))(maps(1))) == 5
