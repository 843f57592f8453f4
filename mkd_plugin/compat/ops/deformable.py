"""Deformable attention and convolutions, and convolution at chosen positions.

Multi-scale deformable attention (Zhu et al., 2021) is mmcv's own on torch's ``grid_sample``. Its shapes: B images, S
keys of all levels together, M heads of D channels, Q queries, L levels, P points.

Deformable convolution (Dai et al., 2017), also modulated (Zhu et al., 2019), is torchvision's. Its shapes: input (B, C, H, W),
weight (O, C / groups, kh, kw), offset (B, 2 · groups · kh · kw, oh, ow) with y before x, mask half as many channels. mmcv also
passes scratch space (``_``), and options of an algorithm that is not used here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision.ops  # noqa: F401 - registers the ops
from torch import Tensor

PLAIN = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
MODULATED = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group')


def ms_deform_attn_forward(*tensors: Tensor, im2col_step: int) -> Tensor:
    """Return the weighted sums of the values at the points, (B, Q, M·D), by mmcv's own function for a CPU.

    The sides of the levels are read from the device, so this waits for it, unlike a compiled op.

    Args:
        tensors: Values (B, S, M, D); height and width of each level (L, 2); where it begins in S (L,), which follows from
            the sides; points (B, Q, M, L, P, 2), x and y in [0, 1], outside of which values are 0; their weights
            (B, Q, M, L, P).
        im2col_step: Images that a compiled op computes at a time; unused.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # mmcv.ops is imported by now

    value, shapes, _, points, weights = tensors
    value, points, weights = (in_float32(tensor) for tensor in (value, points, weights))
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), points, weights).to(tensors[0].dtype)


def ms_deform_attn_backward(*tensors: Tensor, im2col_step: int) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`.

    Args:
        tensors: Those of the forward pass; the gradient of its result; the gradients of values, points and weights.
        im2col_step: Unused.
    """
    value, shapes, starts, points, weights, grad_output, *targets = tensors
    parts = [in_float32(part.detach()).requires_grad_() for part in (value, points, weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(parts[0], shapes, starts, *parts[1:], im2col_step=im2col_step)
    for target, gradient in zip(targets, torch.autograd.grad(output, parts, in_float32(grad_output)), strict=True):
        target.copy_(gradient)


def in_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Convolution:
    """torchvision's op on these tensors, computed in float32 or better; with a mask it is modulated."""

    def __init__(
        self,
        options: dict[str, int],
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        modulated = mask is not None
        mask = input.new_zeros(len(input), 1) if mask is None else mask
        bias = input.new_zeros(len(weight)) if bias is None else bias
        self.dtype = torch.promote_types(input.dtype, torch.float32)
        self.tensors = [tensor.to(self.dtype).contiguous() for tensor in (input, weight, offset, mask, bias)]
        self.geometry = (*(options[name] for name in (MODULATED if modulated else PLAIN)), modulated)

    def result(self) -> Tensor:
        """Return the output, (B, O, oh, ow)."""
        return torch.ops.torchvision.deform_conv2d(*self.tensors, *self.geometry)

    def gradients(self, grad_output: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of input, weight, offset, mask and bias.

        Exactly one pixel before the image, where a fresh layer with offsets of 0 has its padding, mmcv's gradient of the
        offset is 0 and torchvision's is the one towards the image.
        """
        backward = torch.ops.torchvision._deform_conv2d_backward
        of_input, of_weight, of_offset, *others = backward(grad_output.to(self.dtype), *self.tensors, *self.geometry)
        return of_input, of_weight, of_offset.masked_fill(self.before_image(), 0), *others

    def before_image(self) -> Tensor:
        """Whether a sample lies at −1 in y or x, for each entry of the offset."""
        _, weight, offset, *_ = self.tensors
        sides = []
        for axis in (0, 1):
            stride, padding, dilation = self.geometry[axis:6:2]
            output, taps = (torch.arange(tensor.shape[2 + axis], device=offset.device) for tensor in (offset, weight))
            sides.append(taps[:, None] * dilation + output * stride - padding)
        kernel, size = weight.shape[2:], offset.shape[2:]
        y, x = sides[0][:, None, :, None], sides[1][:, None, :]
        grid = torch.stack([y.expand(*kernel, *size), x.expand(*kernel, *size)], 2)
        samples = offset.view(len(offset), -1, *kernel, 2, *size) + grid
        return (samples == -1).any(4, keepdim=True).expand_as(samples).flatten(1, 4)


def deform_conv_forward(*tensors: Tensor, **options: int) -> None:
    """Write the convolution into the output; tensors are input, weight, offset, output."""
    input, weight, offset, output, *_ = tensors
    output.copy_(Convolution(options, input, weight, offset).result())


def deform_conv_backward_input(*tensors: Tensor, **options: int) -> None:
    """Write two gradients; tensors are input, offset, gradients of output, input and offset, weight."""
    input, offset, grad_output, grad_input, grad_offset, weight, _ = tensors
    gradients = Convolution(options, input, weight, offset).gradients(grad_output)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **options: int) -> None:
    """Add the weight's gradient, times ``scale``; tensors are input, offset, gradients of output and weight."""
    input, offset, grad_output, grad_weight, *_ = tensors
    weight = torch.zeros_like(grad_weight)  # its gradient does not depend on its values
    grad_weight.add_(Convolution(options, input, weight, offset).gradients(grad_output)[1], alpha=scale)


def modulated_deform_conv_forward(*tensors: Tensor, with_bias: bool, **options: int) -> None:
    """Write the convolution into the output; tensors are input, weight, bias, _, offset, mask, output."""
    input, weight, bias, _, offset, mask, output, _ = tensors
    output.copy_(Convolution(options, input, weight, offset, mask, bias if with_bias else None).result())


def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **options: int) -> None:
    """Write all gradients; tensors as in the forward pass, then those of input, weight, bias, offset, mask and output."""
    input, weight, _, _, offset, mask, _, grad_input, grad_weight, grad_bias, grad_offset, grad_mask, grad_output = (
        tensors
    )
    gradients = Convolution(options, input, weight, offset, mask).gradients(grad_output)
    targets = (grad_input, grad_weight, grad_offset, grad_mask, *([grad_bias] if with_bias else []))
    for target, gradient in zip(targets, gradients, strict=False):
        target.copy_(gradient)


def masked_im2col_forward(features: Tensor, y: Tensor, x: Tensor, columns: Tensor, **options: int) -> None:
    """Write what the kernel sees of (1, C, H, W) at N positions into ``columns``, (C · kh · kw, N)."""
    padding = options['pad_h'], options['pad_w']
    width = features.shape[3] + 2 * padding[1] - options['kernel_w'] + 1
    seen = F.unfold(features, (options['kernel_h'], options['kernel_w']), padding=padding)[0]
    columns.copy_(seen[:, y * width + x])


def masked_col2im_forward(columns: Tensor, y: Tensor, x: Tensor, output: Tensor, **options: int) -> None:
    """Write (O, N) results to their positions in the output, (1, O, oh, ow)."""
    output[0, :, y, x] = columns
