"""Capture the attention and tokens of a forward pass, one layer at a time, without keeping them.

Works with any network that calls ``F.scaled_dot_product_attention`` and whose blocks have a second norm: our ViT and those
of mmpretrain and timm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mkd_plugin.analysis.loss_surface import evaluation_mode
from mkd_plugin.analysis.streaming import widen

OnLayer = Callable[[str, Tensor], object]  # (name of the layer, its values for some images)
IMAGES_AT_ONCE = 4  # attention weights are formed for this many images at a time, to save memory


def explicit_attention(
    q_BHNK: Tensor, k_BHNK: Tensor, *, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Compute softmax(Q Kᵀ · scale + bias), (B, H, N, N), in at least float32, which a fused kernel does not return.

    ``scale`` is K^(−1/2) by default. A boolean ``bias`` is True where a key may be attended to.
    """
    scale = q_BHNK.shape[-1] ** -0.5 if scale is None else scale
    logits_BHNN = (widen(q_BHNK) * scale) @ widen(k_BHNK).mT
    if bias is not None and bias.dtype == torch.bool:
        logits_BHNN = logits_BHNN.masked_fill(~bias, -torch.inf)
    elif bias is not None:
        logits_BHNN = logits_BHNN + bias
    return logits_BHNN.softmax(dim=-1)


@torch.no_grad()
def run_watched(
    model: nn.Module, images_BCHW: Tensor, *, on_attention: OnLayer | None = None, on_tokens: OnLayer | None = None
) -> Any:
    """Run a network once in evaluation mode, pass its attention and tokens to callbacks layer by layer, and return its output.

    ``on_attention`` gets ('block:i', attention after softmax (b, H, N, N)) for a few images at a time; ``on_tokens`` gets
    ('input:0', tokens entering the first block) and, for every block, ('middle:i', tokens after the attention residual) and
    ('block:i', tokens after the MLP residual), each (B, N, D). Raises ValueError if the network has no fused attention, or
    no pre-norm blocks.
    """
    watch = None if on_attention is None else AttentionWatch(on_attention)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        if on_tokens is not None:
            stack.enter_context(watch_tokens(model, on_tokens))
        if watch is not None:
            stack.enter_context(watch)
        output = model(images_BCHW)
    if watch is not None and not watch.layers:
        raise ValueError(
            f'{type(model).__name__} computed no fused attention. A convolutional network has none: leave out the measurements '
            'of attention. A transformer must compute it with F.scaled_dot_product_attention (timm: call '
            'timm.layers.set_fused_attn(True) before building it).'
        )
    return output


class AttentionWatch(TorchFunctionMode):
    """While active, recompute the weights of each fused attention from its arguments, a few images at a time."""

    def __init__(self, on_layer: OnLayer) -> None:
        super().__init__()
        self.on_layer = on_layer
        self.layers = 0  # attention calls so far

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._read(*args, **kwargs)
            self.layers += 1
        return func(*args, **kwargs)

    def _read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        name = f'block:{self.layers}'
        if is_causal or enable_gqa or query.dim() != 4:
            raise ValueError(
                f'{name}: causal, grouped or not 4-dimensional attention is not supported. Pass only the image encoder of '
                'the model.'
            )
        for first in range(0, len(query), IMAGES_AT_ONCE):
            some = slice(first, first + IMAGES_AT_ONCE)
            one_each = attn_mask is not None and attn_mask.dim() == 4 and len(attn_mask) > 1
            bias = attn_mask[some] if one_each and attn_mask is not None else attn_mask
            self.on_layer(name, explicit_attention(query[some], key[some], scale=scale, bias=bias))


def blocks_of(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the pre-norm blocks in order, each with its second norm, whose input are the tokens after the attention."""
    for module in model.modules():
        for attribute, norm in (('layers', 'ln2'), ('blocks', 'norm2')):
            blocks = getattr(module, attribute, None)
            if isinstance(blocks, Iterable) and not isinstance(blocks, Tensor):
                found = [(block, getattr(block, norm, None)) for block in blocks]
                pairs = [(block, second) for block, second in found if isinstance(second, nn.Module)]
                if pairs and len(pairs) == len(found):
                    return pairs
    raise ValueError(
        f"{type(model).__name__} has no list of pre-norm transformer blocks ('layers' with 'ln2', or 'blocks' with 'norm2'). "
        'For a ResNet, compare features with CKA, or leave out these measurements.'
    )


@contextmanager
def watch_tokens(model: nn.Module, on_tokens: OnLayer) -> Iterator[None]:
    """Pass the tokens between and inside the blocks to a callback while active."""

    def entering(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        on_tokens(name, inputs[0])

    def leaving(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        on_tokens(name, output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for index, (block, second_norm) in enumerate(blocks_of(model)):
            hooks = [
                second_norm.register_forward_pre_hook(partial(entering, f'middle:{index}')),
                block.register_forward_hook(partial(leaving, f'block:{index}')),
            ]
            if index == 0:
                hooks.append(block.register_forward_pre_hook(partial(entering, 'input:0')))
            for hook in hooks:
                stack.callback(hook.remove)
        yield
