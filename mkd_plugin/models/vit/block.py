"""Sizes of Vision Transformers, in one place: ViT-B → L → tiny is one override of ``arch``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from timm.layers import QuickGELU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from mkd_plugin.models.vit.attention import Attention, AttentionOutput, LayerScale
from mkd_plugin.models.vit.relative import RelativePositionBias
from mkd_plugin.structures import take


@dataclass(frozen=True)
class Arch:
    """Size of a transformer.

    Raises:
        ValueError: The width is not a multiple of the number of heads, or a size is not positive.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads, self.mlp_ratio) <= 0 or self.width % self.num_heads:
            raise ValueError(f'{self}: sizes must be positive and width a multiple of num_heads.')


ARCHS = {
    'ti': Arch(192, 12, 3),
    's': Arch(384, 12, 6),
    'b': Arch(768, 12, 12),
    'l': Arch(1024, 24, 16),
    'h': Arch(1280, 32, 16),
}


def resolve_arch(arch: str | dict[str, Any] | Arch) -> Arch:
    """Turn a config's ``arch`` into sizes.

    Args:
        arch: One of ``ARCHS`` or ``dict(width=…, depth=…, num_heads=…[, mlp_ratio=…])``.

    Raises:
        ValueError: An unknown name or key.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f"arch='{arch}' is not known: choose from {sorted(ARCHS)} or give a dict.")
        return ARCHS[arch]
    allowed = {field.name for field in fields(Arch)}
    if not {'width', 'depth', 'num_heads'} <= set(arch) <= allowed:
        raise ValueError(f'arch={dict(arch)}: a dict needs width, depth, num_heads and may have mlp_ratio.')
    return Arch(**arch)


ACTIVATIONS: dict[str, type[nn.Module]] = {'gelu': nn.GELU, 'quick_gelu': QuickGELU}


class FeedForward(nn.Module):
    """Two-layer perceptron; nested as mmcv's ``FFN`` so that the keys agree."""

    def __init__(self, *, width: int, hidden: int, activation: str = 'gelu', layer_scale: float | None = None) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation]())
        self.layers = nn.Sequential(first, nn.Linear(hidden, width))
        self.gamma2: nn.Module = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        return self.gamma2(self.layers(x_BND))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x), each branch with stochastic depth per image.

    Args:
        width: Channels of a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the perceptron over ``width``.
        drop_path: Probability that a branch is skipped for an image.
        norm_eps: Of the two LayerNorms.
        activation: Of the perceptron, one of ``ACTIVATIONS``.
        layer_scale: First value of a learned factor per channel on both branches; None for none.
        relative_grid: Grid of a relative position bias of this block's own; None for none.
        recompute: Keep only the block's input for the backward pass and compute the rest again (activation checkpointing:
            about a third more time, a fraction of the memory).
    """

    attention_class: ClassVar[type[Attention]] = Attention

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        activation: str = 'gelu',
        layer_scale: float | None = None,
        relative_grid: tuple[int, int] | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.ln1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = self.attention_class(
            width=width, num_heads=num_heads, relative_grid=relative_grid, layer_scale=layer_scale
        )
        self.ln2 = nn.LayerNorm(width, eps=norm_eps)
        hidden = int(width * mlp_ratio)
        self.ffn = FeedForward(width=width, hidden=hidden, activation=activation, layer_scale=layer_scale)
        self.drop_path = StochasticDepth(drop_path, mode='row')

    def forward(
        self, x_BND: Tensor, rows_BR: Tensor | None = None, bias_1HNN: Tensor | None = None
    ) -> tuple[Tensor, AttentionOutput]:
        """Run the block.

        Args:
            x_BND: Tokens.
            rows_BR: Give these tokens only, (B, R, D): exactly the same rows, computed without the rest.
            bias_1HNN: A relative position bias that all blocks share.

        Returns:
            The new tokens, and what its attention gave.
        """
        if self.recompute and torch.is_grad_enabled():
            # not mmengine's `activation_checkpointing`: it wraps with the re-entrant form, which loses relation taps
            result: tuple[Tensor, AttentionOutput] = checkpoint(
                self._forward, x_BND, rows_BR, bias_1HNN, use_reentrant=False
            )
            return result
        return self._forward(x_BND, rows_BR, bias_1HNN)

    def _forward(
        self, x_BND: Tensor, rows_BR: Tensor | None, bias_1HNN: Tensor | None
    ) -> tuple[Tensor, AttentionOutput]:
        attention = self.attn(self.ln1(x_BND), rows_BR, bias_1HNN)
        x_BND = (x_BND if rows_BR is None else take(x_BND, rows_BR)) + self.drop_path(attention.update_BRD)
        return x_BND + self.drop_path(self.ffn(self.ln2(x_BND))), attention


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 at the first block to ``rate`` at the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def init_linears(module: nn.Module) -> None:
    """MAE's initialisation: linears xavier-uniform with zero bias, norms to identity; layer scales and relative position
    biases to their first values."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, (nn.LayerNorm, LayerScale, RelativePositionBias)):
            child.reset_parameters()
