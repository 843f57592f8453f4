"""Attention with a relative position bias that is trained, where no fused kernel gives the bias a gradient.

Legend beside ``mkd_plugin/structures.py``: h, w rows and columns of patches; R some of the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**20  # logits that are held at once: they should stay in the cache between one operation and the next


class BiasedAttention(torch.autograd.Function):
    """softmax(q·kᵀ / √K + bias) · v without ever holding all logits of a head: they are computed again for the gradients.

    The bias is read from its table of offsets as it is needed. With the keys in reverse order, that of patch (r, c) and all
    keys is a window of the table that begins at (r, c).
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, offsets_Hab: Tensor, cls_3H: Tensor | None
    ) -> Tensor:
        """Attend, (B, H, N, K).

        Args:
            ctx: Autograd's.
            q_BHNK: Queries: cls, if ``cls_3H`` is given, then the patches, row-major.
            k_BHNK: Keys.
            v_BHNK: Values.
            offsets_Hab: The bias by offset, (H, 2h − 1, 2w − 1).
            cls_3H: That of cls→patch, patch→cls and cls→cls.
        """
        ctx.save_for_backward(q_BHNK, k_BHNK, v_BHNK, offsets_Hab, cls_3H)
        batch, heads, length, width = q_BHNK.shape
        out_BNHK = q_BHNK.new_empty(batch, length, heads, width)
        for head in range(heads):
            keys, values = (tensor[:, head].flip(1) for tensor in (k_BHNK, v_BHNK))
            bias = Bias(offsets_Hab, cls_3H, head)
            for rows, bias_RN in bias.chunks(batch):
                shares_BRN = shares(q_BHNK[:, head, rows], keys, bias_RN)
                out_BNHK[:, rows, head] = shares_BRN @ values
        return out_BNHK.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHNK: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what ``forward`` was given."""
        q_BHNK, k_BHNK, v_BHNK, offsets_Hab, cls_3H = ctx.saved_tensors
        batch, heads, length, width = q_BHNK.shape
        scale = width**-0.5
        dq, dk, dv = (q_BHNK.new_empty(batch, length, heads, width) for _ in range(3))
        doffsets, dcls = torch.zeros_like(offsets_Hab), None if cls_3H is None else torch.zeros_like(cls_3H)
        for head in range(heads):
            keys, values = (tensor[:, head].flip(1) for tensor in (k_BHNK, v_BHNK))
            dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
            bias = Bias(offsets_Hab, cls_3H, head)
            for rows, bias_RN in bias.chunks(batch):
                queries, grad = q_BHNK[:, head, rows], grad_BHNK[:, head, rows]
                shares_BRN = shares(queries, keys, bias_RN)
                dvalues.baddbmm_(shares_BRN.transpose(1, 2), grad)
                dlogits_BRN = torch._softmax_backward_data(grad @ values.transpose(1, 2), shares_BRN, -1, grad.dtype)
                dq[:, rows, head] = torch.bmm(dlogits_BRN, keys).mul_(scale)
                dkeys.baddbmm_(dlogits_BRN.transpose(1, 2), queries, alpha=scale)
                bias.add_gradient(dlogits_BRN.sum(0), rows, doffsets, dcls)
            dk[:, :, head], dv[:, :, head] = dkeys.flip(1), dvalues.flip(1)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), doffsets, dcls


def shares(queries_BRK: Tensor, keys_BNK: Tensor, bias_RN: Tensor) -> Tensor:
    """How much each of these queries takes of each value, (B, R, N)."""
    scale = queries_BRK.shape[-1] ** -0.5
    logits_BRN = torch.baddbmm(bias_RN, queries_BRK, keys_BNK.transpose(1, 2), alpha=scale)
    return logits_BRN.softmax(-1)


class Bias:
    """One head's bias for keys in reverse order."""

    def __init__(self, offsets_Hab: Tensor, cls_3H: Tensor | None, head: int) -> None:
        self.head = head
        self.first = 0 if cls_3H is None else 1  # of the patches among the queries
        self.cls: list[float] = [] if cls_3H is None else cls_3H[:, head].tolist()
        self.height, self.width = ((size + 1) // 2 for size in offsets_Hab.shape[1:])
        self.table_ab = offsets_Hab[head].contiguous()

    def chunks(self, batch: int) -> Iterator[tuple[slice, Tensor]]:
        """Queries, and their bias to all keys, (R, N), which holds until the next is asked for."""
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
        """Add what these rows of the bias give to the gradients of the tables."""
        length = self.height * self.width
        if dcls_3H is not None and rows.start == 0:
            dcls_3H[0, self.head] += dbias_RN[0, :length].sum()
            dcls_3H[2, self.head] += dbias_RN[0, length]
            return
        if dcls_3H is not None:
            dcls_3H[1, self.head] += dbias_RN[:, length].sum()
        top, count = (rows.start - self.first) // self.width, len(dbias_RN) // self.width
        sums = F.fold(
            dbias_RN[None, :, :length],
            (count + self.height - 1, 2 * self.width - 1),
            (count, self.width),
        )
        doffsets_Hab[self.head, top : top + count + self.height - 1] += sums[0, 0]
