"""``mmcv._ext`` from torchvision, where mmcv was installed without its compiled ops.

``mkd_plugin.compat.patches`` serves this file under the name ``mmcv._ext``, only where there is no real one. It follows mmcv's
calling conventions, and imports nothing that imports mmcv: it is loaded while ``mmcv.ops`` is being imported.

It has the ops of Cascade and Mask R-CNN, DETR and UPerNet, on CPU and GPU: ``nms``, ``roi_align_forward`` and
``roi_align_backward``. Every other op can be imported, and raises when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision.ops
from torch import Tensor

from mkd_plugin.compat.hosts import HOSTS

AVERAGE = 1  # mmcv's number for pool_mode='avg'; 'max' is 0


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression. Among equal scores the earlier box wins.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,), of any floating-point type.
        iou_threshold: Boxes that overlap a better box by more than this are dropped.
        offset: 1 if x2 and y2 are the last pixels inside (a width is x2 − x1 + 1), 0 if they are edges.

    Returns:
        (K,) int64: indices of the kept boxes, by descending score.
    """
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, scores = boxes.to(dtype), scores.to(dtype)  # torchvision needs one type for both
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average features over a grid of bins in each box, into ``output``.

    Half precision is computed in float32 and rounded once: neither library has a kernel for bfloat16. ``input`` is
    (N, C, H, W), ``rois`` (K, 5) with image, x1, y1, x2, y2, and ``output`` (K, C, aligned_height, aligned_width).
    """
    check_pool_mode(pool_mode)
    dtype = torch.promote_types(input.dtype, torch.float32)
    pooled = torchvision.ops.roi_align(
        input.to(dtype), rois.to(dtype), (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` with respect to ``input`` into ``grad_input``; same arguments.

    With ``torch.use_deterministic_algorithms``, torchvision's slower deterministic kernel is used on a GPU.
    """
    check_pool_mode(pool_mode)
    dtype = torch.promote_types(grad_output.dtype, torch.float32)
    grad_output, rois = grad_output.to(dtype), rois.to(dtype)
    size, options = (aligned_height, aligned_width), (sampling_ratio, aligned)
    if grad_input.is_cuda and torch.are_deterministic_algorithms_enabled():
        with torch.enable_grad():  # the op is linear: the values of its input do not matter
            anywhere = torch.zeros_like(grad_input, dtype=dtype, requires_grad=True)
            pooled = torchvision.ops.roi_align(anywhere, rois, size, spatial_scale, *options)
        gradient = torch.autograd.grad(pooled, anywhere, grad_output)[0]
    else:
        gradient = torch.ops.torchvision._roi_align_backward(
            grad_output, rois, spatial_scale, *size, *grad_input.shape, *options
        )
    grad_input.copy_(gradient)


def get_compiler_version() -> str:
    """Return the text for mmcv's environment report."""
    return 'none: ops of torchvision, served by mkd_plugin'


def get_compiling_cuda_version() -> str:
    """Return the text for mmcv's environment report."""
    return 'none: ops of torchvision, served by mkd_plugin'


def check_pool_mode(pool_mode: int) -> None:
    """Raise NotImplementedError for maximum pooling."""
    if pool_mode != AVERAGE:
        raise NotImplementedError(
            "roi_align with pool_mode='max' is not in torchvision, which stands in for mmcv's compiled ops: use "
            f"pool_mode='avg', or {how_to_compile()}"
        )


def how_to_compile() -> str:
    """Return the commands that install mmcv with its ops."""
    mmcv = next(host for host in HOSTS if host.module == 'mmcv')
    installed = mmcv.installed()
    name = mmcv.onedl if mmcv.onedl in installed else 'mmcv'
    return (
        f'install mmcv with compiled ops: `pip uninstall -y {" ".join(installed) or name}`, then `pip install '
        f'--no-build-isolation --no-binary {name} {name}` (about 16 minutes; torch 2.10 was seen to work, 2.14 not).'
    )


def __getattr__(name: str) -> Callable[..., Any]:
    """Return a function that raises, for every other op: importing ``mmcv.ops`` needs all of them to exist."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f'{name} is one of the ops that mmcv compiles, and it was installed without them; mkd_plugin has only nms and '
            f'roi_align in their place. If you need it, {how_to_compile()}'
        )

    return missing
