"""Multi-scale deformable attention (Zhu et al., 2021), level by level with torch's ``grid_sample``.

Shapes: B images, S keys of all levels together, M heads of D channels, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_forward(*tensors: Tensor, im2col_step: int) -> Tensor:
    """Return the weighted sums of the values at the points, (B, Q, M·D).

    The sides of the levels are read from the device, so this waits for it once, unlike a compiled op.

    Args:
        tensors: Values (B, S, M, D); height and width of each level (L, 2); where it begins in S (L,), which follows from
            the sides; points (B, Q, M, L, P, 2), x and y in [0, 1], outside of which values are 0; their weights
            (B, Q, M, L, P).
        im2col_step: Images that a compiled op computes at a time; unused.
    """
    value, shapes, _, points, weights = tensors
    total = value.new_zeros((), dtype=torch.promote_types(value.dtype, torch.float32))
    for side, keys, level in levels_of(shapes):
        parts = (part.to(total.dtype) for part in (value[:, keys], points[:, :, :, level], weights[:, :, :, level]))
        total = total + attend(side, *parts)
    return total.to(value.dtype)


def ms_deform_attn_backward(*tensors: Tensor, im2col_step: int) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`.

    A level is computed again when it is its turn, so that only one takes memory.

    Args:
        tensors: Those of the forward pass; the gradient of its result; the gradients of values, points and weights.
        im2col_step: Unused.
    """
    value, shapes, _, points, weights, grad_output, grad_value, grad_points, grad_weights = tensors
    dtype = torch.promote_types(value.dtype, torch.float32)
    for side, keys, level in levels_of(shapes):
        at = (slice(None), slice(None), slice(None), level)
        parts = [part.detach().to(dtype).requires_grad_() for part in (value[:, keys], points[at], weights[at])]
        with torch.enable_grad():
            output = attend(side, *parts)
        gradients = torch.autograd.grad(output, parts, grad_output.to(dtype))
        targets = (grad_value[:, keys], grad_points[at], grad_weights[at])
        for target, gradient in zip(targets, gradients, strict=True):
            target.copy_(gradient)


def levels_of(shapes: Tensor) -> Iterator[tuple[tuple[int, int], slice, int]]:
    """Yield height and width of each level, its keys, and its number."""
    start = 0
    for level, (height, width) in enumerate(shapes.tolist()):
        yield (height, width), slice(start, start + height * width), level
        start += height * width


def attend(side: tuple[int, int], value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Attend to a level of height and width ``side``: (B, S of it, M, D), (B, Q, M, P, 2), (B, Q, M, P) → (B, Q, M·D)."""
    images, _, heads, channels = value.shape
    maps = value.permute(0, 2, 3, 1).reshape(images * heads, channels, *side)
    grid = (2 * points - 1).transpose(1, 2).flatten(0, 1)  # from [0, 1] to grid_sample's [-1, 1]
    sampled = F.grid_sample(maps, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    weighted = sampled * weights.transpose(1, 2).flatten(0, 1)[:, None]
    return weighted.sum(-1).view(images, heads * channels, -1).transpose(1, 2)
