"""What a forward pass computes inside, handed out one layer at a time and never kept.

It works on any network whose attention is ``F.scaled_dot_product_attention`` and whose blocks have a second norm: ours,
mmpretrain's and timm's ViTs.
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

from mkd_plugin.analysis.checks import widen
from mkd_plugin.analysis.mean_loss import evaluation_mode

OnLayer = Callable[[str, Tensor], object]  # (name of the layer, its values for some images)
IMAGES_AT_ONCE = 4  # attention is formed for so many images: less than a layer of a batch is in memory


def explicit_attention(
    q_BHNK: Tensor, k_BHNK: Tensor, *, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """softmax(Q Kᵀ · scale + bias), (B, H, N, N), at least float32: what a fused kernel does not show.

    Args:
        q_BHNK: Queries.
        k_BHNK: Keys.
        scale: K^(−1/2) by default.
        bias: Added to the logits, or, if boolean, True where a key may be attended to.
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
    """Run a network once, in evaluation mode, and hand out what it computes, layer by layer.

    Args:
        model: The network.
        images_BCHW: Its input.
        on_attention: Gets ('block:i', attention after softmax (b, H, N, N)), a few images at a time.
        on_tokens: Gets ('input:0', tokens that enter the first block), and of every block ('middle:i', tokens after the
            attention residual) and ('block:i', tokens after the perceptron's), each (B, N, D).

    Returns:
        What the network returns.

    Raises:
        ValueError: The network has no such attention, or no such blocks.
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
            f'{type(model).__name__} computed no fused attention. A convolutional network has none: leave the measurements of '
            'attention out. A transformer must compute it with F.scaled_dot_product_attention (timm: '
            'timm.layers.set_fused_attn(True) before it is built).'
        )
    return output


class AttentionWatch(TorchFunctionMode):
    """While active, recomputes each fused attention's weights from the very arguments it is called with.

    Args:
        on_layer: Gets them, ``IMAGES_AT_ONCE`` images at a time.

    Attributes:
        layers: Attentions seen so far.
    """

    def __init__(self, on_layer: OnLayer) -> None:
        super().__init__()
        self.on_layer = on_layer
        self.layers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of a torch function comes through here."""
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
                f'{name}: attention that is causal, grouped or not (B, H, N, K) is not measured here, only that of an image '
                'encoder. Give the image encoder alone.'
            )
        for first in range(0, len(query), IMAGES_AT_ONCE):
            some = slice(first, first + IMAGES_AT_ONCE)
            one_each = attn_mask is not None and attn_mask.dim() == 4 and len(attn_mask) > 1
            bias = attn_mask[some] if one_each and attn_mask is not None else attn_mask
            self.on_layer(name, explicit_attention(query[some], key[some], scale=scale, bias=bias))


def blocks_of(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The transformer blocks of a network in order, each with its second norm, which reads the tokens after the attention.

    Raises:
        ValueError: There are none: the network has no list ``layers`` or ``blocks`` of pre-norm blocks.
    """
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
        'A ResNet has no attention: compare its features with CKA, or leave these measurements out.'
    )


@contextmanager
def watch_tokens(model: nn.Module, on_tokens: OnLayer) -> Iterator[None]:
    """Hand out the tokens between and inside the blocks while this is active."""

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
