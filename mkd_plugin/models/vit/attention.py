"""Multi-head self-attention on the fused kernel (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.structures import QueryKey, take

__all__ = ['Attention']


class Attention(nn.Module):
    """Self-attention; parameter names as in mmpretrain's ``MultiheadAttention``.

    Args:
        width: Channels of a token.
        num_heads: Heads; each has ``width // num_heads`` channels.
    """

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, rows_BR: Tensor | None = None) -> tuple[Tensor, QueryKey]:
        """Attend.

        Args:
            x_BND: Normalised tokens.
            rows_BR: Compute the output of these tokens only; they still attend to all N.

        Returns:
            The update of the (chosen) tokens, and this layer's queries and keys.
        """
        q, k, v = self._split(self.qkv(x_BND)) if rows_BR is None else self._heads_of_rows(x_BND, rows_BR)
        out_BHNK = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out_BHNK.transpose(1, 2).flatten(2)), QueryKey(q, k)

    def query_key(self, x_BND: Tensor) -> QueryKey:
        """Queries and keys alone, for a network that stops here."""
        q, k = self._split(self._part_of_qkv(x_BND, 0, 2))
        return QueryKey(q, k)

    def _heads_of_rows(self, x_BND: Tensor, rows_BR: Tensor) -> tuple[Tensor, ...]:
        queries, keys_values = self._part_of_qkv(take(x_BND, rows_BR), 0, 1), self._part_of_qkv(x_BND, 1, 3)
        return (*self._split(queries), *self._split(keys_values))

    def _part_of_qkv(self, x_BND: Tensor, first: int, end: int) -> Tensor:
        """Of (query, key, value) only those from ``first`` to before ``end``, (B, N, (end − first) · D)."""
        rows = slice(first * x_BND.shape[-1], end * x_BND.shape[-1])
        return F.linear(x_BND, self.qkv.weight[rows], self.qkv.bias[rows])

    def _split(self, packed_BNE: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values that lie one behind the other, each (B, H, N, K)."""
        batch, length, _ = packed_BNE.shape
        # taken apart first and transposed then: so their gradients are put together where the linear layer reads them
        parts = packed_BNE.view(batch, length, -1, self.num_heads, self.proj.in_features // self.num_heads).unbind(2)
        return tuple(part_BNHK.transpose(1, 2) for part_BNHK in parts)
