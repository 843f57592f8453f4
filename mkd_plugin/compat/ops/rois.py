"""Features of boxes: averages over a grid of points (Mask R-CNN), and maxima of bins (Fast R-CNN).

``input`` is (N, C, H, W), ``rois`` (K, 5) with image, x1, y1, x2, y2 in pixels of which ``spatial_scale`` makes features, and
``output`` (K, C, height, width).
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision.ops
from torch import Tensor

from mkd_plugin.compat.hosts import how_to_compile_ops

AVERAGE = 1  # mmcv's number for pool_mode='avg'; 'max' is 0
BOXES = 16  # pooled at a time, which bounds the memory


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **options: Any
) -> None:
    """Average features over a grid of bins in each box, into ``output``.

    Neither library has a kernel for bfloat16.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    output.copy_(torchvision.ops.roi_align(input.to(dtype), rois.to(dtype), *grid_of(**options)))


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **options: Any
) -> None:
    """Write the gradient of :func:`roi_align_forward` with respect to ``input`` into ``grad_input``; same options.

    With ``torch.use_deterministic_algorithms``, torchvision's slower deterministic kernel is used on a GPU.
    """
    dtype = torch.promote_types(grad_output.dtype, torch.float32)
    grad_output, rois = grad_output.to(dtype), rois.to(dtype)
    size, scale, ratio, aligned = grid_of(**options)
    if grad_input.is_cuda and torch.are_deterministic_algorithms_enabled():
        with torch.enable_grad():  # the op is linear: the values of its input do not matter
            anywhere = torch.zeros_like(grad_input, dtype=dtype, requires_grad=True)
            pooled = torchvision.ops.roi_align(anywhere, rois, size, scale, ratio, aligned)
        gradient = torch.autograd.grad(pooled, anywhere, grad_output)[0]
    else:
        backward = torch.ops.torchvision._roi_align_backward
        gradient = backward(grad_output, rois, scale, *size, *grad_input.shape, ratio, aligned)
    grad_input.copy_(gradient)


def grid_of(
    *, aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool
) -> tuple[tuple[int, int], float, int, bool]:
    """Return mmcv's options of RoIAlign as torchvision has them; raise NotImplementedError for maximum pooling."""
    if pool_mode != AVERAGE:
        raise NotImplementedError(
            "roi_align with pool_mode='max' is not in torchvision, which stands in for mmcv's compiled ops: use "
            f"pool_mode='avg', or {how_to_compile_ops()}"
        )
    return (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maximum of each bin into ``output``, 0 of an empty one; its place y · W + x or −1 into ``argmax``.

    Unlike torchvision's, corners are not rounded to features: a box ends a pixel after x2 and y2, and a bin has all the
    features that it touches.
    """
    height, width = input.shape[2:]
    for number in range(0, len(rois), BOXES):
        part = slice(number, number + BOXES)
        image, corners = rois[part, 0].long(), rois[part, 1:].to(torch.promote_types(rois.dtype, torch.float32))
        start, end = corners[:, :2] * spatial_scale, (corners[:, 2:] + 1) * spatial_scale
        empty = (end <= start).any(1, keepdim=True)
        xs, inside_x = features_of_bins(start[:, 0], end[:, 0], pooled_width, width, empty)
        ys, inside_y = features_of_bins(start[:, 1], end[:, 1], pooled_height, height, empty)
        ys, xs = ys[:, :, None, :, None], xs[:, None, :, None, :]
        inside = (inside_y[:, :, None, :, None] & inside_x[:, None, :, None, :]).flatten(3)
        values = input[image[:, None, None, None, None], :, ys, xs].flatten(3, 4)  # (k, height, width, features, C)
        best, index = values.masked_fill(~inside[..., None], -torch.inf).max(3)
        places = (ys * width + xs).flatten(3).gather(3, index)
        found = inside.any(3, keepdim=True)
        output[part] = best.where(found, best.new_zeros(())).permute(0, 3, 1, 2)
        argmax[part] = places.where(found, -1).permute(0, 3, 1, 2).int()


def features_of_bins(start: Tensor, end: Tensor, bins: int, side: int, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions of the features that bins of boxes touch along a side, (k, bins, n), and which of them count."""
    size = ((end - start) / bins)[:, None]
    number = torch.arange(bins, device=start.device)
    first = (number * size + start[:, None]).floor().clamp(0, side).long()
    last = ((number + 1) * size + start[:, None]).ceil().clamp(0, side).long()
    at = first[..., None] + torch.arange(max(int((last - first).max()), 1), device=start.device)
    return at.clamp(max=side - 1), (at < last[..., None]) & ~empty[..., None]


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **options: float) -> None:
    """Add the gradient of each maximum to ``grad_input`` where it was found."""
    image, channel = rois[:, 0].long()[:, None, None, None], torch.arange(grad_input.shape[1], device=rois.device)
    gradient = grad_output.where(argmax >= 0, grad_output.new_zeros(()))
    index = (image, channel[:, None, None], argmax.clamp(min=0).long())
    grad_input.view(*grad_input.shape[:2], -1).index_put_(index, gradient, accumulate=True)
