"""Self-attention over a plane of patches: windows, and a trained relative position bias without all logits in memory.

Shape legend beside ``mkd_plugin/structures.py``: h, w rows and columns of patches; W windows; R some of the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mkd_plugin.models.vit.attention import Attention
from mkd_plugin.models.vit.block import Block, add_branch
from mkd_plugin.models.vit.relative import spread

Attend = Callable[[Tensor, tuple[int, int]], Tensor]
CHUNK = 2**20  # logits held at once; they should stay in the cache between two operations


class DenseAttention(Attention):
    """Self-attention over a plane of patches behind prefix tokens; parameters and options as in :class:`Attention`."""

    def forward(  # type: ignore[override]
        self, x_BND: Tensor, grid: tuple[int, int], window: int | None = None
    ) -> Tensor:
        """Attend, (B, N, D).

        Args:
            x_BND: Normalised tokens: prefix tokens, if any, then the patches.
            grid: Rows and columns of the patches.
            window: Side of the windows, in patches, within which to attend (without prefix tokens); None for the whole plane.
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
        """Attend with concatenated queries, keys and values; the mixed values, (B, N, D)."""
        q, k, v = self._split(packed_BNE)
        if offsets_Hab is None:
            out_BHNK = F.scaled_dot_product_attention(q, k, v)
        else:
            out_BHNK = attend_with_bias(q, k, v, offsets_Hab, cls_3H)
        return out_BHNK.transpose(1, 2).flatten(2)


class DenseBlock(Block):
    """A block of the dense backbone; parameters and options as in :class:`Block`."""

    attention_class = DenseAttention

    def forward(  # type: ignore[override]
        self, x_BND: Tensor, grid: tuple[int, int], window: int | None = None, kept_2B11: Tensor | None = None
    ) -> Tensor:
        """Return the new tokens (B, N, D); arguments as of :class:`DenseAttention` and :class:`Block`."""
        if not self.training:  # a frozen block skips nothing
            kept_2B11 = None
        if self.recompute and torch.is_grad_enabled():
            x_BND, update_BND = checkpoint(self._run, x_BND, grid, window, kept_2B11, **self.recompute)
        else:
            x_BND, update_BND = self._run(x_BND, grid, window, kept_2B11)
        return add_branch(x_BND, update_BND, kept_2B11, 1)

    def _run(
        self, x_BND: Tensor, grid: tuple[int, int], window: int | None, kept_2B11: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x_BND = add_branch(x_BND, self.attn(self.ln1(x_BND), grid, window), kept_2B11, 0)
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


def attend_with_bias(
    q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, offsets_Hab: Tensor, cls_3H: Tensor | None
) -> Tensor:
    """softmax(q·kᵀ / √K + bias) · v, (B, H, N, K); arguments as of :class:`BiasedAttention`.

    A GPU's fused kernels compute the gradient of the bias. The CPU's do not: without :class:`BiasedAttention` several copies
    of all logits of a layer would be in memory.
    """
    trained = torch.is_grad_enabled() and offsets_Hab.requires_grad and not torch.compiler.is_compiling()
    if trained and q_BHNK.device.type == 'cpu' and q_BHNK.dtype == offsets_Hab.dtype:
        result: Tensor = BiasedAttention.apply(q_BHNK, k_BHNK, v_BHNK, offsets_Hab, cls_3H)
        return result
    bias_1HNN = spread(offsets_Hab, cls_3H).to(q_BHNK.dtype).unsqueeze(0)
    return F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=bias_1HNN)


class BiasedAttention(torch.autograd.Function):
    """softmax(q·kᵀ / √K + bias) · v without all logits of a head in memory: they are recomputed for the gradients.

    ``torch.utils.checkpoint`` around the same operations, also in chunks, takes 1.2 to 1.6 times as long on a CPU.
    The bias is read from its table of offsets chunk by chunk. With the keys in reverse order, the bias of patch (r, c) to all
    keys is a window of the table that begins at (r, c).
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, offsets_Hab: Tensor, cls_3H: Tensor | None
    ) -> Tensor:
        """Attend, (B, H, N, K). The tokens are cls, if ``cls_3H`` is given, then the patches, row-major.

        ``offsets_Hab``, (H, 2h − 1, 2w − 1), is the bias by offset; ``cls_3H`` that of cls→patch, patch→cls and cls→cls.
        """
        ctx.save_for_backward(q_BHNK, k_BHNK, v_BHNK, offsets_Hab, cls_3H)
        batch, heads, length, width = q_BHNK.shape
        out_BNHK = q_BHNK.new_empty(batch, length, heads, width)
        for head in range(heads):
            keys, values = (tensor[:, head].flip(1) for tensor in (k_BHNK, v_BHNK))
            bias = HeadBias(offsets_Hab, cls_3H, head)
            for rows, bias_RN in bias.chunks(batch):
                out_BNHK[:, rows, head] = _weights(q_BHNK[:, head, rows], keys, bias_RN) @ values
        return out_BNHK.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHNK: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of ``forward``."""
        q_BHNK, k_BHNK, v_BHNK, offsets_Hab, cls_3H = ctx.saved_tensors
        batch, heads, length, width = q_BHNK.shape
        scale = width**-0.5
        dq, dk, dv = (q_BHNK.new_empty(batch, length, heads, width) for _ in range(3))
        doffsets, dcls = torch.zeros_like(offsets_Hab), None if cls_3H is None else torch.zeros_like(cls_3H)
        for head in range(heads):
            keys, values = (tensor[:, head].flip(1) for tensor in (k_BHNK, v_BHNK))
            dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
            bias = HeadBias(offsets_Hab, cls_3H, head)
            for rows, bias_RN in bias.chunks(batch):
                queries, grad = q_BHNK[:, head, rows], grad_BHNK[:, head, rows]
                weights_BRN = _weights(queries, keys, bias_RN)
                dvalues.baddbmm_(weights_BRN.transpose(1, 2), grad)
                dlogits_BRN = torch._softmax_backward_data(grad @ values.transpose(1, 2), weights_BRN, -1, grad.dtype)
                dq[:, rows, head] = torch.bmm(dlogits_BRN, keys).mul_(scale)
                dkeys.baddbmm_(dlogits_BRN.transpose(1, 2), queries, alpha=scale)
                bias.add_gradient(dlogits_BRN.sum(0), rows, doffsets, dcls)
            dk[:, :, head], dv[:, :, head] = dkeys.flip(1), dvalues.flip(1)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), doffsets, dcls


def _weights(queries_BRK: Tensor, keys_BNK: Tensor, bias_RN: Tensor) -> Tensor:
    """Attention weights of some of the queries, (B, R, N)."""
    scale = queries_BRK.shape[-1] ** -0.5
    logits_BRN = torch.baddbmm(bias_RN, queries_BRK, keys_BNK.transpose(1, 2), alpha=scale)
    return logits_BRN.softmax(-1)


class HeadBias:
    """One head's bias for keys in reverse order."""

    def __init__(self, offsets_Hab: Tensor, cls_3H: Tensor | None, head: int) -> None:
        self.head = head
        self.first = 0 if cls_3H is None else 1  # index of the first patch among the queries
        self.cls: list[float] = [] if cls_3H is None else cls_3H[:, head].tolist()
        self.height, self.width = ((size + 1) // 2 for size in offsets_Hab.shape[1:])
        self.table_ab = offsets_Hab[head].contiguous()

    def chunks(self, batch: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield some queries and their bias to all keys, (R, N), which is valid until the next chunk."""
        height, width, first = self.height, self.width, self.first
        length = height * width
        stride = self.table_ab.stride(0)
        windows = self.table_ab.as_strided((height, width, height, width), (stride, 1, stride, 1))
        if first:
            bias_1N = self.table_ab.new_full((1, length + 1), self.cls[0])
            bias_1N[0, -1] = self.cls[2]
            yield slice(0, 1), bias_1N
        step = max(1, min(height, CHUNK // (batch * width * length)))
        buffer_RN = self.table_ab.new_full((step * width, length + first), self.cls[1] if first else 0.0)
        for top in range(0, height, step):
            end = min(top + step, height)
            bias_RN = buffer_RN[: (end - top) * width]
            bias_RN[:, :length].view(end - top, width, height, width).copy_(windows[top:end])
            yield slice(first + top * width, first + end * width), bias_RN

    def add_gradient(self, dbias_RN: Tensor, rows: slice, doffsets_Hab: Tensor, dcls_3H: Tensor | None) -> None:
        """Add the gradient of these rows of the bias to the gradients of the tables."""
        length = self.height * self.width
        if dcls_3H is not None and rows.start == 0:
            dcls_3H[0, self.head] += dbias_RN[0, :length].sum()
            dcls_3H[2, self.head] += dbias_RN[0, length]
            return
        if dcls_3H is not None:
            dcls_3H[1, self.head] += dbias_RN[:, length].sum()
        top, count = (rows.start - self.first) // self.width, len(dbias_RN) // self.width
        size = (count + self.height - 1, 2 * self.width - 1)
        sums = F.fold(dbias_RN[None, :, :length], size, (count, self.width))
        doffsets_Hab[self.head, top : top + count + self.height - 1] += sums[0, 0]
