"""One pre-norm transformer block; parameter names as in mmpretrain's ``TransformerEncoderLayer``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from mkd_plugin.models.vit.attention import Attention
from mkd_plugin.structures import QueryKey, take

__all__ = ['Block', 'FeedForward', 'drop_path_rates', 'init_linears']


class FeedForward(nn.Module):
    """Two-layer perceptron; nested as mmcv's ``FFN`` so that the keys agree."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(width, hidden), nn.GELU()), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        return self.layers(x_BND)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x), each branch with stochastic depth per image.

    Args:
        width: Channels of a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the perceptron over ``width``.
        drop_path: Probability that a branch is skipped for an image.
        recompute: Keep only the block's input for the backward pass and compute the rest again (activation checkpointing:
            about a third more time, a fraction of the memory).
    """

    def __init__(
        self, *, width: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width=width, num_heads=num_heads)
        self.ln2 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = FeedForward(width=width, hidden=int(width * mlp_ratio))
        self.drop_path = StochasticDepth(drop_path, mode='row')

    def forward(self, x_BND: Tensor, rows_BR: Tensor | None = None) -> tuple[Tensor, QueryKey]:
        """Run the block.

        Args:
            x_BND: Tokens.
            rows_BR: Give these tokens only, (B, R, D): exactly the same rows, computed without the rest.

        Returns:
            The new tokens, and the attention's queries and keys.
        """
        if self.recompute and torch.is_grad_enabled():
            # not mmengine's `activation_checkpointing`: it wraps with the re-entrant form, which loses relation taps
            result: tuple[Tensor, QueryKey] = checkpoint(self._forward, x_BND, rows_BR, use_reentrant=False)
            return result
        return self._forward(x_BND, rows_BR)

    def _forward(self, x_BND: Tensor, rows_BR: Tensor | None) -> tuple[Tensor, QueryKey]:
        update, query_key = self.attn(self.ln1(x_BND), rows_BR)
        x_BND = (x_BND if rows_BR is None else take(x_BND, rows_BR)) + self.drop_path(update)
        return x_BND + self.drop_path(self.ffn(self.ln2(x_BND))), query_key

    def query_key(self, x_BND: Tensor) -> QueryKey:
        """The attention's queries and keys alone."""
        return self.attn.query_key(self.ln1(x_BND))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 at the first block to ``rate`` at the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def init_linears(module: nn.Module) -> None:
    """MAE's initialisation: linears xavier-uniform with zero bias, norms to identity."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.LayerNorm):
            child.reset_parameters()
