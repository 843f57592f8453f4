"""Self-attention over a plane of patches: windows, and a trained relative position bias.

Shape legend beside ``mkd_plugin/structures.py``: h, w rows and columns of patches; W windows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mkd_plugin.models.vit.attention import Attention
from mkd_plugin.models.vit.block import Block, add_branch
from mkd_plugin.models.vit.relative import spread

Attend = Callable[[Tensor, tuple[int, int]], Tensor]


class DenseAttention(Attention):
    """Self-attention over a plane of patches behind prefix tokens; parameters and options as in :class:`Attention`."""

    def forward(  # type: ignore[override]
        self, x_BND: Tensor, grid: tuple[int, int], window: int | None = None, turns_1NK: Tensor | None = None
    ) -> Tensor:
        """Attend, (B, N, D).

        Args:
            x_BND: Normalised tokens: prefix tokens, if any, then the patches.
            grid: Rows and columns of the patches.
            window: Side of the windows, in patches, within which to attend (without prefix tokens); None for the whole plane.
            turns_1NK: Cosines and sines of rotary positions, by the place in the plane also within windows.
        """
        packed_BNE = self.qkv(x_BND)
        if turns_1NK is not None:
            q, k, v = self._split(packed_BNE)
            turned = self.turn(q, turns_1NK), self.turn(k, turns_1NK), v
            packed_BNE = torch.cat([part.transpose(1, 2).flatten(2) for part in turned], dim=-1)
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
        return self.gamma1(self.proj(self.inner_norm(mixed_BND)))

    def _mix(self, packed_BNE: Tensor, offsets_Hab: Tensor | None, cls_3H: Tensor | None = None) -> Tensor:
        """Attend with concatenated queries, keys and values; the mixed values, (B, N, D).

        ``offsets_Hab``, (H, 2h − 1, 2w − 1), is the bias by offset between patches; ``cls_3H`` that of cls→patch, patch→cls
        and cls→cls, if a cls token precedes the patches.
        """
        q, k, v = self._split(packed_BNE)
        bias_HNN = None if offsets_Hab is None else spread(offsets_Hab, cls_3H).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HNN).transpose(1, 2).flatten(2)


class DenseBlock(Block):
    """A block of the dense backbone; parameters and options as in :class:`Block`."""

    attention_class = DenseAttention

    def forward(  # type: ignore[override]
        self,
        x_BND: Tensor,
        grid: tuple[int, int],
        window: int | None = None,
        kept_2B11: Tensor | None = None,
        turns_1NK: Tensor | None = None,
    ) -> Tensor:
        """Return the new tokens (B, N, D); arguments as of :class:`DenseAttention` and :class:`Block`."""
        if not self.training:  # a frozen block skips nothing
            kept_2B11 = None
        if self.recompute and torch.is_grad_enabled():
            x_BND, update_BND = checkpoint(self._run, x_BND, grid, window, kept_2B11, turns_1NK, **self.recompute)
        else:
            x_BND, update_BND = self._run(x_BND, grid, window, kept_2B11, turns_1NK)
        return add_branch(x_BND, update_BND, kept_2B11, 1)

    def _run(
        self,
        x_BND: Tensor,
        grid: tuple[int, int],
        window: int | None,
        kept_2B11: Tensor | None,
        turns_1NK: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x_BND = add_branch(x_BND, self.attn(self.ln1(x_BND), grid, window, turns_1NK), kept_2B11, 0)
        return x_BND, self.ffn(self.ln2(x_BND))


def in_windows(x_BLE: Tensor, grid: tuple[int, int], window: int, attend: Attend) -> Tensor:
    """Apply ``attend`` to each window of ``window`` × ``window`` patches separately.

    If the plane is no whole number of windows, those at its right and lower border are smaller. This equals padding them
    and masking the padding in attention, without computing the padding. ``attend`` maps (W, N, E), W windows, and their rows
    and columns to (W, N, D); the result is (B, L, D).
    """
    plane_BhwE = x_BLE.view(x_BLE.shape[0], *grid, -1)
    bands = []
    for top, band in _spans(grid[0], window):
        parts = [
            _equal_windows(plane_BhwE[:, top : top + band[0], left : left + part[0]], (band[1], part[1]), attend)
            for left, part in _spans(grid[1], window)
        ]
        bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2))
    return (bands[0] if len(bands) == 1 else torch.cat(bands, dim=1)).flatten(1, 2)


def _spans(length: int, window: int) -> list[tuple[int, tuple[int, int]]]:
    """(start, (length, side of a window)) of the whole windows along a side, and of the rest; empty ones are left out."""
    whole = length - length % window
    found = [(0, (whole, window)), (whole, (length - whole, length - whole))]
    return [span for span in found if span[1][0]]


def _equal_windows(plane_BhwE: Tensor, size: tuple[int, int], attend: Attend) -> Tensor:
    """Attend within windows of ``size`` that fill the plane exactly, (B, h, w, D)."""
    batch, rows, columns, width = plane_BhwE.shape
    count = rows // size[0], columns // size[1]
    cut = plane_BhwE.reshape(batch, count[0], size[0], count[1], size[1], width)
    mixed_WND = attend(cut.transpose(2, 3).reshape(-1, size[0] * size[1], width), size)
    return mixed_WND.view(batch, *count, *size, -1).transpose(2, 3).reshape(batch, rows, columns, -1)
