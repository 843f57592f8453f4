"""Attention of the dense backbone: over all tokens of an image of any size, or within windows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mkd_plugin.downstream.biased import BiasedAttention
from mkd_plugin.downstream.windows import in_windows
from mkd_plugin.models.vit.attention import Attention
from mkd_plugin.models.vit.block import Block
from mkd_plugin.models.vit.relative import spread

__all__ = ['DenseAttention', 'DenseBlock', 'attend_with_bias']


class DenseAttention(Attention):
    """Self-attention over a plane of patches, behind prefix tokens; parameters and options as in :class:`Attention`."""

    def forward(  # type: ignore[override]
        self, x_BND: Tensor, grid: tuple[int, int], window: int | None = None
    ) -> Tensor:
        """Attend, (B, N, D).

        Args:
            x_BND: Normalised tokens: prefix tokens, if there are any, then the patches.
            grid: Rows and columns of the patches.
            window: Attend only within windows of that side (patches, no prefix tokens); None for the whole plane.
        """
        packed_BNE = self.qkv(x_BND)
        bias = self.rel_pos_bias
        cls_3H = None if bias is None or x_BND.shape[1] == grid[0] * grid[1] else bias.of_cls()
        if window is None:
            mixed_BND = self._mix(packed_BNE, None if bias is None else bias.offsets(grid), cls_3H)
        else:
            mixed_BND = in_windows(
                packed_BNE,
                grid,
                window,
                lambda part, size: self._mix(part, None if bias is None else bias.within(size)),
            )
        return self.gamma1(self.proj(mixed_BND))

    def _mix(self, packed_BNE: Tensor, offsets_Hab: Tensor | None, cls_3H: Tensor | None = None) -> Tensor:
        """From queries, keys and values that lie one behind the other to mixed values, (B, N, D)."""
        q, k, v = self._split(packed_BNE)
        if offsets_Hab is None:
            out_BHNK = F.scaled_dot_product_attention(q, k, v)
        else:
            out_BHNK = attend_with_bias(q, k, v, offsets_Hab, cls_3H)
        return out_BHNK.transpose(1, 2).flatten(2)


def attend_with_bias(
    q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, offsets_Hab: Tensor, cls_3H: Tensor | None
) -> Tensor:
    """softmax(q·kᵀ / √K + bias) · v, (B, H, N, K); arguments as of :class:`BiasedAttention`.

    A GPU's fused kernels give the bias a gradient. The CPU's does not: without :class:`BiasedAttention` all logits of a layer
    would be held several times.
    """
    trained = torch.is_grad_enabled() and offsets_Hab.requires_grad and not torch.compiler.is_compiling()
    if trained and q_BHNK.device.type == 'cpu' and q_BHNK.dtype == offsets_Hab.dtype:
        result: Tensor = BiasedAttention.apply(q_BHNK, k_BHNK, v_BHNK, offsets_Hab, cls_3H)
        return result
    bias_1HNN = spread(offsets_Hab, cls_3H).to(q_BHNK.dtype).unsqueeze(0)
    return F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=bias_1HNN)


class DenseBlock(Block):
    """A block of the dense backbone; parameters and options as in :class:`Block`."""

    attention_class = DenseAttention

    def forward(  # type: ignore[override]
        self, x_BND: Tensor, grid: tuple[int, int], window: int | None = None
    ) -> Tensor:
        """The new tokens, (B, N, D); arguments as of :class:`DenseAttention`."""
        if self.recompute and torch.is_grad_enabled():
            result: Tensor = checkpoint(self._run, x_BND, grid, window, use_reentrant=False)
            return result
        return self._run(x_BND, grid, window)

    def _run(self, x_BND: Tensor, grid: tuple[int, int], window: int | None) -> Tensor:
        x_BND = x_BND + self.drop_path(self.attn(self.ln1(x_BND), grid, window))
        return x_BND + self.drop_path(self.ffn(self.ln2(x_BND)))
