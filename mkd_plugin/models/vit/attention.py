"""Multi-head self-attention with PyTorch's fused kernel (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mkd_plugin.models.vit.relative import RelativePositionBias
from mkd_plugin.models.vit.rotary import FORMS, keep
from mkd_plugin.structures import take


class AttentionOutput(NamedTuple):
    """Output of an attention layer."""

    #: Residual update of the selected tokens; None if only queries, keys and values were computed
    update_BRD: Tensor | None
    q_BHRK: Tensor  #: Queries of the selected tokens, turned by rotary positions
    k_BHNK: Tensor  #: Keys, likewise
    v_BHNK: Tensor | None  #: Values; None if no tap reads them


def attend(q: Tensor, k: Tensor, v: Tensor, bias_1HNN: Tensor | None = None, rows_BR: Tensor | None = None) -> Tensor:
    """Compute fused attention with a bias of the logits; ``rows_BR``: the tokens of the queries, None for all."""
    mask = None if bias_1HNN is None else bias_1HNN.to(q.dtype)
    if mask is not None and rows_BR is not None:
        mask = mask[0][:, rows_BR].transpose(0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_by(kernels: list[SDPBackend], *inputs: Any) -> Tensor:
    """:func:`attend` by some of PyTorch's kernels."""
    with sdpa_kernel(kernels):
        return attend(*inputs)


def attend_by_flex(flex: Any, q: Tensor, k: Tensor, v: Tensor, bias_1HNN: Tensor, rows_BR: Tensor | None) -> Any:
    """:func:`attend` by ``flex``, torch's compiled ``flex_attention``, which adds the bias in float32."""

    def add_bias(logit: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return logit + bias_1HNN[0, head, query if rows_BR is None else rows_BR[image, query], key]

    return flex(q, k, v, score_mod=add_bias)


class LayerScale(nn.Module):
    """Scale each channel by a learned factor; parameter name as in mmpretrain's and mmcv's ``LayerScale``."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.full((width,), float(start)))

    def reset_parameters(self) -> None:
        """Reset every factor to its initial value."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Scale tokens."""
        return x_BND * self.weight


class QueryValueBias(nn.Linear):
    """Linear layer of queries, keys and values without bias for the keys: that part of it stays 0 and gets no gradient."""

    used: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width)
        self.register_buffer('used', torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(width), persistent=False)

    @property
    def used_bias(self) -> Tensor:
        """The bias, 0 for keys."""
        return self.bias * self.used

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        return F.linear(input, self.weight, self.used_bias)


class Attention(nn.Module):
    """Self-attention; parameter names as in mmpretrain's ``MultiheadAttention``.

    Args:
        width: Channels of a token.
        num_heads: Heads; each has ``width // num_heads`` channels.
        relative_grid: Grid of this layer's own relative position bias; None for no bias.
        layer_scale: Initial value of the update's layer scale; None for no layer scale.
        rope: Form of the rotary positions, for which keys have no bias; None for none.
        inner_norm: Epsilon of a LayerNorm before the last linear layer; None for no norm.
    """

    attend: Callable[..., Tensor] = staticmethod(attend)  # AttentionHook may replace it

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        relative_grid: tuple[int, int] | None = None,
        layer_scale: float | None = None,
        rope: str | None = None,
        inner_norm: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width) if rope is None else QueryValueBias(width)
        self.turn: Callable[..., Tensor] = keep if rope is None else FORMS[rope].turn
        self.inner_norm: nn.Module = nn.Identity() if inner_norm is None else nn.LayerNorm(width, eps=inner_norm)
        self.proj = nn.Linear(width, width)
        self.gamma1: nn.Module = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.rel_pos_bias: RelativePositionBias | None = None
        if relative_grid is not None:
            self.rel_pos_bias = RelativePositionBias(grid=relative_grid, num_heads=num_heads)

    def forward(
        self,
        x_BND: Tensor,
        rows_BR: Tensor | None = None,
        bias_1HNN: Tensor | None = None,
        turns_BNK: Tensor | None = None,
    ) -> AttentionOutput:
        """Attend.

        Args:
            x_BND: Normalised tokens.
            rows_BR: Tokens to compute the output for; they still attend to all N. None for all.
            bias_1HNN: Bias shared by all layers, added to the attention logits.
            turns_BNK: Cosines and sines of rotary positions, for all images or each.
        """
        if rows_BR is None:
            q, k, v = self._split(self.qkv(x_BND))
        else:
            (q,) = self._split(self._part_of_qkv(take(x_BND, rows_BR), 0, 1))
            k, v = self._split(self._part_of_qkv(x_BND, 1, 3))
        q, k = self.turn(q, turns_BNK, rows_BR), self.turn(k, turns_BNK)
        bias = self.rel_pos_bias() if self.rel_pos_bias is not None else bias_1HNN
        out_BHNK = self.attend(q, k, v, bias, rows_BR)
        return AttentionOutput(self.gamma1(self.proj(self.inner_norm(out_BHNK.transpose(1, 2).flatten(2)))), q, k, v)

    def project(self, x_BND: Tensor, turns_BNK: Tensor | None, *, values: bool) -> AttentionOutput:
        """Compute only queries and keys, and values if requested, when no later layer is needed."""
        parts = self._split(self._part_of_qkv(x_BND, 0, 3 if values else 2))
        q, k = (self.turn(part, turns_BNK) for part in parts[:2])
        return AttentionOutput(None, q, k, parts[2] if values else None)

    def _part_of_qkv(self, x_BND: Tensor, first: int, end: int) -> Tensor:
        """Apply the rows of ``qkv`` for (query, key, value)[first:end], (B, N, (end − first) · D)."""
        rows = slice(first * x_BND.shape[-1], end * x_BND.shape[-1])
        bias = getattr(self.qkv, 'used_bias', self.qkv.bias)
        return F.linear(x_BND, self.qkv.weight[rows], bias[rows])

    def _split(self, packed_BNE: Tensor) -> tuple[Tensor, ...]:
        """Split concatenated queries, keys and values into one (B, H, N, K) tensor each."""
        batch, length, _ = packed_BNE.shape
        # unbind before transposing: the backward pass then writes all gradients into one contiguous tensor
        parts = packed_BNE.view(batch, length, -1, self.num_heads, self.proj.in_features // self.num_heads).unbind(2)
        return tuple(part_BNHK.transpose(1, 2) for part_BNHK in parts)
