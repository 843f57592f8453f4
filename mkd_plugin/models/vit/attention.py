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
        q, k, v = self._heads(x_BND, 3) if rows_BR is None else self._heads_of_rows(x_BND, rows_BR)
        out_BHNK = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out_BHNK.transpose(1, 2).flatten(2)), QueryKey(q, k)

    def query_key(self, x_BND: Tensor) -> QueryKey:
        """Queries and keys alone, for a network that stops here."""
        q, k = self._heads(x_BND, 2)
        return QueryKey(q, k)

    def _heads(self, x_BND: Tensor, parts: int, first: int = 0) -> tuple[Tensor, ...]:
        """The ``parts`` of (query, key, value) from ``first`` on, each (B, H, N, K)."""
        rows = slice(first * x_BND.shape[-1], (first + parts) * x_BND.shape[-1])
        packed = F.linear(x_BND, self.qkv.weight[rows], self.qkv.bias[rows])
        batch, length, _ = packed.shape
        return packed.view(batch, length, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _heads_of_rows(self, x_BND: Tensor, rows_BR: Tensor) -> tuple[Tensor, ...]:
        return (*self._heads(take(x_BND, rows_BR), 1), *self._heads(x_BND, 2, first=1))
