"""Deformable attention and convolutions as mmcv calls them: figures of mmcv's own tests, plain Python, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import mkd_plugin  # noqa: F401 - lets mmcv.ops be imported

mmcv_ops = pytest.importorskip('mmcv.ops')
from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

SHAPES = torch.tensor([[6, 4], [3, 2]])
STARTS = torch.tensor([0, 24])


def attention_inputs(dtype=torch.float64, images=2, heads=2, channels=3, queries=4, points=2) -> list[torch.Tensor]:
    """Values, points and their weights for ``SHAPES``; some points lie outside of the maps."""
    torch.manual_seed(3)
    value = torch.rand(images, 30, heads, channels, dtype=dtype)
    locations = torch.rand(images, queries, heads, 2, points, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(images, queries, heads, 2 * points, dtype=dtype).softmax(-1).unflatten(-1, (2, points))
    return [tensor.requires_grad_() for tensor in (value, locations, weights)]


def apply(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return MultiScaleDeformableAttnFunction.apply(value, SHAPES, STARTS, locations, weights, 64)


def bilinear(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """(H, W, D) between pixel centres, 0 outside."""
    total = torch.zeros(image.shape[2], dtype=image.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_deformable_attention__is_what_plain_python_gives():
    value, locations, weights = (tensor.detach() for tensor in attention_inputs())
    wanted = torch.zeros(2, 4, 2, 3, dtype=torch.float64)
    for b, q, m, level, p in torch.cartesian_prod(*map(torch.arange, (2, 4, 2, 2, 2))).tolist():
        height, width = SHAPES[level].tolist()
        start = STARTS[level]
        image = value[b, start : start + height * width, m].view(height, width, 3)
        x, y = locations[b, q, m, level, p].tolist()
        wanted[b, q, m] += weights[b, q, m, level, p] * bilinear(image, y * height - 0.5, x * width - 0.5)
    torch.testing.assert_close(apply(value, locations, weights), wanted.flatten(2), rtol=1e-12, atol=1e-12)


def test_deformable_attention__gradients():
    inputs = attention_inputs(images=1, channels=2, queries=2)
    assert torch.autograd.gradcheck(apply, inputs)
    inputs = attention_inputs()
    upstream = torch.randn(2, 4, 6, dtype=torch.float64)
    theirs = multi_scale_deformable_attn_pytorch(inputs[0], SHAPES, *inputs[1:])
    made = apply(*inputs)
    torch.testing.assert_close(made, theirs, rtol=1e-12, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (made, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_deformable_attention__half_precision_is_single_precision_rounded():
    halves = [tensor.detach().half().requires_grad_() for tensor in attention_inputs()]
    singles = [tensor.detach().float().requires_grad_() for tensor in halves]
    made, wanted = apply(*halves), apply(*singles)
    assert made.dtype == torch.half and torch.equal(made, wanted.half())
    made.sum().backward()
    wanted.sum().backward()
    assert all(torch.equal(half.grad, single.grad.half()) for half, single in zip(halves, singles, strict=True))


def test_deformable_attention_of_mmcv__is_on_a_gpu_what_it_is_on_a_cpu(monkeypatch):
    from mmcv.ops import multi_scale_deform_attn

    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(embed_dims=8, num_heads=2, num_levels=2, num_points=3, dropout=0.0)
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    torch.nn.init.normal_(layer.attention_weights.weight)
    query, keys, reference = torch.randn(5, 2, 8), torch.randn(30, 2, 8), torch.rand(2, 5, 2, 2)
    results, calls = [], []
    served, compiled = multi_scale_deform_attn.ext_module, multi_scale_deform_attn.ext_module.ms_deform_attn_forward
    monkeypatch.setattr(
        served, 'ms_deform_attn_forward', lambda *args, **options: calls.append(on_gpu) or compiled(*args, **options)
    )
    for on_gpu in (False, True):
        if on_gpu:
            monkeypatch.setattr(multi_scale_deform_attn, 'IS_CUDA_AVAILABLE', True)
            monkeypatch.setattr(torch.Tensor, 'is_cuda', property(lambda self: True))
        layer.zero_grad()
        out = layer(query, value=keys, reference_points=reference, spatial_shapes=SHAPES, level_start_index=STARTS)
        out.square().sum().backward()
        results.append([out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert calls == [True]


# mmcv's tests/test_ops/test_deform_conv.py: a 2 × 2 convolution whose offsets are another's output
IMAGE = [[[[1.0, 2, 3], [0, 1, 2], [3, 5, 2]]]]
OFFSET_WEIGHT = [[0.1, 0.4, 0.6, 0.1], [0.3, 0.2, 0.1, 0.3], [0.5, 0.5, 0.2, 0.8], [0.8, 0.3, 0.9, 0.1],
                 [0.3, 0.1, 0.2, 0.5], [0.3, 0.7, 0.5, 0.3], [0.6, 0.2, 0.5, 0.3], [0.4, 0.1, 0.8, 0.4]]  # fmt: skip
OFFSET_BIAS = [0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7]
WEIGHT = [0.4, 0.2, 0.1, 0.9]
OUTPUT = [[[[1.650, 0], [0, 0]]]]
IMAGE_GRADIENT = [[[[-0.666, 0.204, 0], [0.030, -0.416, 0.012], [0, 0.252, 0.129]]]]
GRADIENTS = {
    'conv_offset.weight': [[1.44, 2.88, 0, 1.44], [-0.72, -1.44, 0, -0.72], [0] * 4, [0] * 4, [-0.10, -0.20, 0, -0.10],
                           [-0.08, -0.16, 0, -0.08], [-0.54, -1.08, 0, -0.54], [-0.54, -1.08, 0, -0.54]],
    'conv_offset.bias': [1.44, -0.72, 0, 0, -0.10, -0.08, -0.54, -0.54],
    'weight': [[3.62, 0, 0.40, 0.18]],
}  # fmt: skip


def assert_gradient(layer: torch.nn.Module, name: str, wanted: list, *, images: int) -> None:
    """Compare the gradient that several equal images gave together."""
    wanted = torch.tensor(wanted, dtype=torch.float64)
    made = layer.get_parameter(name).grad.view_as(wanted) / images
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-8)


def test_deform_conv__gives_the_figures_of_mmcv():
    layer = mmcv_ops.DeformConv2dPack(1, 1, kernel_size=2, im2col_step=2).double()
    layer.conv_offset.weight.data = torch.tensor(OFFSET_WEIGHT, dtype=torch.float64).view(8, 1, 2, 2)
    layer.conv_offset.bias.data = torch.tensor(OFFSET_BIAS, dtype=torch.float64)
    layer.weight.data = torch.tensor(WEIGHT, dtype=torch.float64).view(1, 1, 2, 2)
    image = torch.tensor(IMAGE, dtype=torch.float64).repeat(4, 1, 1, 1).requires_grad_()
    made = layer(image)
    made.sum().backward()
    close = dict(rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(made[3:], torch.tensor(OUTPUT).double(), **close)
    torch.testing.assert_close(image.grad[3:], torch.tensor(IMAGE_GRADIENT).double(), **close)
    for name, wanted in GRADIENTS.items():
        assert_gradient(layer, name, wanted, images=4)


# mmcv's tests/test_ops/test_modulated_deform_conv.py: a 2 × 2 convolution of ones, offsets of 0 and masks of 0.5
MODULATED_GRADIENTS = {
    'weight': [[9.0, 9, 9, 9]],
    'conv_offset.weight': [[-7.0, -4, 0, 0], [-9, 7.5, -6, 5], [-4, -7, 0, 0], [-7.5, -9, -5, -6], [-7, -4, -7, -4],
                           [-6, 5, -9, 7.5], [-4, -7, -4, -7], [-5, -6, -7.5, -9], [10.5, 6, 7, 4], [6, 10.5, 4, 7],
                           [7, 4, 10.5, 6], [4, 7, 6, 10.5]],
    'conv_offset.bias': [-3.0, -1.5, -3, -1.5, -3, -1.5, -3, -1.5, 4.5, 4.5, 4.5, 4.5],
}  # fmt: skip


def test_modulated_deform_conv__gives_the_figures_of_mmcv():
    layer = mmcv_ops.ModulatedDeformConv2dPack(1, 1, kernel_size=2, padding=1, bias=False).double()
    layer.weight.data.fill_(1.0)
    image = torch.tensor([[[[1.0, 2, 3]] * 3]], dtype=torch.float64, requires_grad=True)
    made = layer(image)
    made.sum().backward()
    assert made.tolist() == [[[[0.5, 1.5, 2.5, 1.5], [1, 3, 5, 3], [1, 3, 5, 3], [0.5, 1.5, 2.5, 1.5]]]]
    assert image.grad.tolist() == [[[[2.0] * 3] * 3]]
    for name, wanted in MODULATED_GRADIENTS.items():
        assert_gradient(layer, name, wanted, images=1)


ORDER = ('input', 'offset', 'mask', 'weight', 'bias')  # of the arguments


def convolution_inputs(*, groups: int, deform_groups: int) -> dict[str, torch.Tensor]:
    """Of a 2 × 3 kernel with stride (1, 2), padding (1, 0) and dilation (2, 1) on 5 × 6 pixels."""
    torch.manual_seed(1)
    sizes = dict(input=(2, 4, 5, 6), offset=(2, 12 * deform_groups, 5, 2), mask=(2, 6 * deform_groups, 5, 2),
                 weight=(4, 4 // groups, 2, 3), bias=(4,))  # fmt: skip
    return {name: torch.randn(size, dtype=torch.float64, requires_grad=True) for name, size in sizes.items()}


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 1), (2, 2)])
def test_modulated_deform_conv__is_what_plain_python_gives(groups, deform_groups, bias):
    given = convolution_inputs(groups=groups, deform_groups=deform_groups)
    given['bias'] = given['bias'] if bias else None
    stride, padding, dilation = (1, 2), (1, 0), (2, 1)

    made = mmcv_ops.modulated_deform_conv2d(
        *(given[name] for name in ORDER), stride, padding, dilation, groups, deform_groups
    )
    wanted = torch.zeros_like(made)
    for b, o, i, j in torch.cartesian_prod(*map(torch.arange, made.shape)).tolist():
        first = o // (4 // groups) * (4 // groups)
        for c, u, v in torch.cartesian_prod(torch.arange(4 // groups), torch.arange(2), torch.arange(3)).tolist():
            tap = (first + c) // (4 // deform_groups) * 6 + u * 3 + v
            y = i * stride[0] - padding[0] + u * dilation[0] + given['offset'][b, 2 * tap, i, j].item()
            x = j * stride[1] - padding[1] + v * dilation[1] + given['offset'][b, 2 * tap + 1, i, j].item()
            sample = bilinear(given['input'].detach()[b, first + c, :, :, None], y, x)[0]
            wanted[b, o, i, j] += given['weight'].detach()[o, c, u, v] * sample * given['mask'].detach()[b, tap, i, j]
        if bias:
            wanted[b, o, i, j] += given['bias'].detach()[o]
    torch.testing.assert_close(made, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('bias', [False, True])
def test_modulated_deform_conv__gradients(bias):
    given = convolution_inputs(groups=2, deform_groups=2)
    tensors = [given[name] for name in ORDER[: 5 if bias else 4]]
    rest = ((1, 2), (1, 0), (2, 1), 2, 2)
    function = lambda *parts: mmcv_ops.modulated_deform_conv2d(*parts, *([] if bias else [None]), *rest)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors, atol=1e-6)


def test_deform_conv__is_the_modulated_one_with_masks_of_one():
    given = convolution_inputs(groups=2, deform_groups=2)
    tensors, geometry = [given[name] for name in ('input', 'offset', 'weight')], ((1, 2), (1, 0), (2, 1), 2, 2)
    made = mmcv_ops.deform_conv2d(*tensors, *geometry)
    ones = torch.ones_like(given['mask'])
    wanted = mmcv_ops.modulated_deform_conv2d(*tensors[:2], ones, tensors[2], None, *geometry)
    torch.testing.assert_close(made, wanted)
    upstream = torch.randn_like(made)
    for one, other in zip(*(torch.autograd.grad(out, tensors, upstream) for out in (made, wanted)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deform_conv__half_precision_is_single_precision_rounded(dtype):
    given = convolution_inputs(groups=1, deform_groups=1)
    tensors = [given[name].detach().to(dtype) for name in ('input', 'offset', 'weight')]
    results = []
    for kind in (dtype, torch.float32):
        parts = [tensor.to(kind, copy=True).requires_grad_() for tensor in tensors]
        made = mmcv_ops.deform_conv2d(*parts, (1, 2), (1, 0), (2, 1))
        made.sum().backward()
        results.append([tensor.to(dtype) for tensor in (made, *(part.grad for part in parts))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_masked_conv__is_a_convolution_where_the_mask_is():
    layer = mmcv_ops.MaskedConv2d(3, 5, (3, 2), padding=(1, 0)).double()
    image, mask = torch.randn(1, 3, 6, 7, dtype=torch.float64), torch.zeros(1, 6, 7)
    mask[0, torch.tensor([0, 3, 5]), torch.tensor([0, 2, 5])] = 1
    made = layer(image, mask)
    wanted = F.conv2d(image, layer.weight, layer.bias, padding=(1, 0))
    torch.testing.assert_close(made, wanted * mask[None, :, :, :6])
