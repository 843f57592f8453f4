"""Number formats of a step beyond autocast: the residual streams of networks, and the products of teachers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.device import get_device
from torch import Tensor, nn
from torch.nn import functional as F


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Compute on the tensor's device in the types that tensors have; the meta device knows no autocast."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def set_precision(model: Any, *, residual: str | None = None, teacher: str | None = None) -> None:
    """Set the number formats of a MaskedDistiller in place, for steps under bfloat16 autocast; weights stay as they are.

    Args:
        model: The model.
        residual: 'bfloat16' for the residual stream and the norms of student and heads; None for float32.
        teacher: 'bfloat16' likewise for the teachers that are ViTs; 'fp8' also for linear layers in float8; None for float32.

    Raises:
        ValueError: A value is unknown, no network is a transformer of ours, or the device cannot compute in this format.
    """
    for name, given, allowed in (('residual', residual, ['bfloat16']), ('teacher', teacher, ['bfloat16', 'fp8'])):
        if given is not None and given not in allowed:
            raise ValueError(f'precision={{{name}: {given!r}}}: use one of {allowed}, or leave it out for float32.')
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError('precision: this GPU has no bfloat16. Remove precision, or use a newer GPU (Ampere or later).')
    streams = [use_bfloat16_stream(part) for part in (model.backbone, model.objectives) if residual]
    if residual and not any(streams):
        raise ValueError(f'precision={{residual: {residual!r}}}: no student or head has such a stream. Leave it out.')
    vits = use_bfloat16_stream(model.teachers, always=True) if teacher else []
    if teacher and not vits:
        raise ValueError(f'precision={{teacher: {teacher!r}}}: no teacher is a ViT of mkd_plugin. Leave it out.')
    for network in vits if teacher == 'fp8' else []:
        use_float8_products(network.layers)


def use_bfloat16_stream(part: nn.Module, *, always: bool = False) -> list[Any]:
    """Switch the transformers of a part to a :class:`Bfloat16Stream`, and return them."""
    networks: list[Any] = [module for module in part.modules() if hasattr(module, 'stream')]
    for network in networks:
        if network.layers[0].ln1.weight.is_meta:  # a trial step without values, which has no autocast
            break
        network.stream = Bfloat16Stream(always=always)
        for norm in [module for module in network.modules() if type(module) is nn.LayerNorm]:
            norm.__class__ = StreamNorm  # keeps parameters, which may be buffers
    return networks


def use_float8_products(blocks: nn.ModuleList) -> None:
    """Switch the linear layers of blocks to float8. Raises ValueError if a size or the device has no kernel."""
    for linear in [module for module in blocks.modules() if isinstance(module, nn.Linear)]:
        tokens = torch.ones(16, linear.in_features, device=get_device(), dtype=torch.bfloat16)
        ones = [torch.ones_like(value, device=tokens.device) for value in (linear.weight, linear.bias)]
        try:
            float8_linear(tokens, *ones)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"precision={{teacher: 'fp8'}}: {tokens.device} has no float8 product for weights {tuple(linear.weight.shape)} "
                f"({str(error).splitlines()[0]}). Use 'bfloat16', or sizes that 16 divides on Ada, Hopper or later."
            ) from error
        linear.__class__ = nn.Linear if linear.weight.is_meta else Float8Linear


class Bfloat16Stream(nn.Module):
    """Casts the tokens before the first block to bfloat16.

    Args:
        always: Whether the network runs in training steps only, as a teacher does, although it stays in eval mode. Any other
            network in eval mode keeps float32 if there is no autocast.
    """

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x_BND: Tensor) -> Tensor:
        """Cast. Raises ValueError in training steps without bfloat16 autocast."""
        kind = x_BND.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
            return x_BND.to(torch.bfloat16)
        if not (self.training or self.always):
            return x_BND
        raise ValueError(
            'precision: bfloat16 residual streams need mixed precision in bfloat16, which this step does not use. Train with '
            '--amp on a GPU that has bfloat16, or remove precision.'
        )


class StreamNorm(nn.LayerNorm):
    """LayerNorm whose output has its input's type, also under autocast; the kernels compute the statistics in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every token."""
        with without_autocast(input):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Float8Linear(nn.Linear):
    """Linear layer without gradients whose product is float8; scales are computed in every step, so weights may change."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; the result is bfloat16."""
        return float8_linear(input.flatten(0, -2), self.weight, self.bias).view(*input.shape[:-1], -1)


def float8_linear(x_RD: Tensor, weight_ED: Tensor, bias_E: Tensor) -> Tensor:
    """``F.linear`` in float8 (e4m3) with a scale for each token and each output channel; (R, E), bfloat16."""
    (rows, row_scale), (weight, weight_scale) = to_float8(x_RD), to_float8(weight_ED)
    return torch._scaled_mm(rows, weight.t(), row_scale, weight_scale.t(), bias_E.bfloat16(), out_dtype=torch.bfloat16)


def to_float8(rows_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row by a scale and round it to float8, whose largest number is 448; rows and scales (R, 1), float32."""
    scale_R1 = rows_RD.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / 448
    return (rows_RD / scale_R1).to(torch.float8_e4m3fn), scale_R1
