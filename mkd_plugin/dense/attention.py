"""Cutting a plane of tokens into windows (shape legend: ``mkd_plugin/structures.py``; h, w rows and columns of patches)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mkd_plugin.dense.biased import BiasedAttention
from mkd_plugin.models.vit.attention import Attention
from mkd_plugin.models.vit.block import Block
from mkd_plugin.models.vit.relative import spread

Attend = Callable[[Tensor, tuple[int, int]], Tensor]


def in_windows(x_BLE: Tensor, grid: tuple[int, int], window: int, attend: Attend) -> Tensor:
    """Apply ``attend`` to each window of ``window`` × ``window`` patches on its own.

    Where the plane is no whole number of windows, those at its right and lower border are smaller. That is what padding
    them and hiding the padding from attention computes, without computing the padding.

    Args:
        x_BLE: Patches, row-major.
        grid: Rows and columns of them.
        window: Side of a window, patches.
        attend: (W, N, E) of W windows, and rows and columns of these, to (W, N, D).

    Returns:
        (B, L, D).
    """
    plane_BhwE = x_BLE.view(len(x_BLE), *grid, -1)
    bands = []
    for top, band in pieces(grid[0], window):
        parts = [
            of_one_size(plane_BhwE[:, top : top + band[0], left : left + part[0]], (band[1], part[1]), attend)
            for left, part in pieces(grid[1], window)
        ]
        bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2))
    return (bands[0] if len(bands) == 1 else torch.cat(bands, dim=1)).flatten(1, 2)


def pieces(length: int, window: int) -> list[tuple[int, tuple[int, int]]]:
    """Whole windows along a side, then what is left: (start, (length, side of a window)) of each that is there."""
    whole = length - length % window
    found = [(0, (whole, window)), (whole, (length - whole, length - whole))]
    return [piece for piece in found if piece[1][0]]


def of_one_size(plane_BhwE: Tensor, size: tuple[int, int], attend: Attend) -> Tensor:
    """The same for a plane that is a whole number of windows of ``size``, (B, h, w, D)."""
    batch, rows, columns, width = plane_BhwE.shape
    count = rows // size[0], columns // size[1]
    cut = plane_BhwE.reshape(batch, count[0], size[0], count[1], size[1], width)
    done_WND = attend(cut.transpose(2, 3).reshape(-1, size[0] * size[1], width), size)
    put = done_WND.view(batch, *count, *size, -1).transpose(2, 3)
    return put.reshape(batch, rows, columns, -1)


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
