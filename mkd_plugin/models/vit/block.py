"""Transformer block, its initialisation, and the standard ViT sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers import QuickGELU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mkd_plugin.models.vit.attention import Attention, AttentionOutput, LayerScale
from mkd_plugin.models.vit.relative import RelativePositionBias
from mkd_plugin.registry import check_values, parameters_of
from mkd_plugin.structures import take
from mkd_plugin.utils.draws import draw_uniform


@dataclass(frozen=True)
class Arch:
    """Size of a transformer.

    Raises:
        ValueError: A size is not positive, or ``width`` is not a multiple of ``num_heads``.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads, self.mlp_ratio) <= 0 or self.width % self.num_heads:
            raise ValueError(f'{self}: all sizes must be positive, and width must be a multiple of num_heads.')


ARCHS = {
    'ti': Arch(192, 12, 3),
    's': Arch(384, 12, 6),
    'b': Arch(768, 12, 12),
    'l': Arch(1024, 24, 16),
    'h': Arch(1280, 32, 16),
}


def resolve_arch(arch: str | dict[str, Any] | Arch) -> Arch:
    """Resolve a config's ``arch``: a key of ``ARCHS`` or a dict. Raises ValueError for unknown names or keys."""
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f"Unknown arch='{arch}': choose from {sorted(ARCHS)} or give a dict.")
        return ARCHS[arch]
    allowed = {field.name for field in fields(Arch)}
    if not {'width', 'depth', 'num_heads'} <= set(arch) <= allowed:
        raise ValueError(f'arch={dict(arch)}: the dict needs width, depth and num_heads; mlp_ratio is optional.')
    check_values('arch', arch, parameters_of(Arch)[0])
    return Arch(**arch)


ACTIVATIONS: dict[str, type[nn.Module]] = {'gelu': nn.GELU, 'quick_gelu': QuickGELU}


class FeedForward(nn.Module):
    """Two-layer MLP, nested like mmcv's ``FFN`` so that state-dict keys match."""

    def __init__(self, *, width: int, hidden: int, activation: str = 'gelu', layer_scale: float | None = None) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation]())
        self.layers = nn.Sequential(first, nn.Linear(hidden, width))
        self.gamma2: nn.Module = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Apply the MLP to every token."""
        return self.gamma2(self.layers(x_BND))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each a residual branch with per-image stochastic depth.

    Args:
        width: Channels of a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP divided by ``width``.
        norm_eps: Epsilon of both LayerNorms.
        activation: Activation of the MLP, a key of ``ACTIVATIONS``.
        layer_scale: Initial value of both branches' layer scale; None for no layer scale.
        relative_grid: Grid of this block's own relative position bias; None for no bias.
        recompute: Recompute activations in the backward pass (activation checkpointing): about a third more time for a
            fraction of the memory.
    """

    attention_class: ClassVar[type[Attention]] = Attention

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
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

    def forward(
        self,
        x_BND: Tensor,
        rows_BR: Tensor | None = None,
        bias_1HNN: Tensor | None = None,
        kept_2B11: Tensor | None = None,
    ) -> tuple[Tensor, AttentionOutput]:
        """Run the block.

        Args:
            x_BND: Tokens.
            rows_BR: Tokens to return, computed without the others; None for all.
            bias_1HNN: Relative position bias shared by all blocks.
            kept_2B11: Factors of both branches, of :class:`DropPath`; None to skip neither.

        Returns:
            The updated tokens (B, R, D), and the output of the attention layer.
        """
        if not self.training:  # a frozen block skips nothing
            kept_2B11 = None
        if self.recompute and torch.is_grad_enabled():
            # mmengine's `activation_checkpointing` uses the re-entrant form, which drops the gradients of relation taps
            return checkpoint(self._forward, x_BND, rows_BR, bias_1HNN, kept_2B11, use_reentrant=False)
        return self._forward(x_BND, rows_BR, bias_1HNN, kept_2B11)

    def _forward(
        self, x_BND: Tensor, rows_BR: Tensor | None, bias_1HNN: Tensor | None, kept_2B11: Tensor | None
    ) -> tuple[Tensor, AttentionOutput]:
        attention = self.attn(self.ln1(x_BND), rows_BR, bias_1HNN)
        x_BND = add_branch(x_BND if rows_BR is None else take(x_BND, rows_BR), attention.update_BRD, kept_2B11, 0)
        return add_branch(x_BND, self.ffn(self.ln2(x_BND)), kept_2B11, 1), attention

    def stop_inside(self, x_BND: Tensor, bias_1HNN: Tensor | None, kinds: set[str]) -> AttentionOutput:
        """Compute only as much of the attention as these kinds of taps need."""
        x_BND = self.ln1(x_BND)
        if 'attention' in kinds:
            return self.attn(x_BND, None, bias_1HNN)
        return self.attn.project(x_BND, values=bool(kinds & {'qkv', 'value'}))


def add_branch(x_BND: Tensor, update_BND: Tensor, kept_2B11: Tensor | None, branch: int) -> Tensor:
    """Add a residual branch, except to images that skip it."""
    return x_BND + (update_BND if kept_2B11 is None else update_BND * kept_2B11[branch].to(update_BND.dtype))


class DropPath(nn.Module):
    """Stochastic depth of all blocks of a network: each image skips each residual branch with the block's probability.

    Drawn once a step for all blocks: compiled blocks share their code, because no rate is a number in it.

    Args:
        rates: Probability of skipping a branch, one per block.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.name = 'drop path'  # of its draws; a MaskedDistiller names each
        self.survival_K = 1 - torch.tensor(self.rates).repeat_interleave(2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DropPath:
        """Move and convert the rates with the network. They are no buffer, because buffers are taken for weights."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.survival_K = fn(self.survival_K)
        return self

    def forward(self, x_BND: Tensor) -> list[Tensor | None]:
        """Draw the factors of each block's branches, (2, B, 1, 1): 0 or 1 / survival; None for blocks that skip none."""
        if not self.training or not any(self.rates):
            return [None] * len(self.rates)
        survival_K1 = self.survival_K.unsqueeze(1)
        kept_KB = draw_uniform(self.name, (len(survival_K1), len(x_BND)), 1, x_BND.device) < survival_K1
        factors_KB = kept_KB / survival_K1
        return list(factors_KB.view(-1, 2, len(x_BND), 1, 1).unbind())


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth per block, growing linearly from 0 at the first block to ``rate`` at the last.

    Raises:
        ValueError: ``rate`` is no probability below 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate={rate}: it must lie in [0, 1), a probability of skipping a branch.')
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


@dataclass(frozen=True)
class Initialization:
    """Distributions of a network's initial weights; biases start at zero."""

    #: Fills the weight of a linear layer, or of the patch embedding as a matrix, in place
    weight_: Callable[[Tensor], Any]
    token_: Callable[[Tensor], Any]  #: Fills a prefix or mask token in place
    #: Fills learned positions in place; None to start from the sine-cosine table
    position_: Callable[[Tensor], Any] | None = None
    scale_residuals: bool = False  #: Divide the last linear layer of both branches of block i (from 1) by √(2 · i)

    def init_linears(self, module: nn.Module) -> None:
        """Initialise all linear layers; reset norms, layer scales and position biases."""
        for child in module.modules():
            if isinstance(child, nn.Linear):
                self.weight_(child.weight)
                if child.bias is not None:
                    nn.init.zeros_(child.bias)
            elif isinstance(child, (nn.LayerNorm, LayerScale, RelativePositionBias)):
                child.reset_parameters()

    @torch.no_grad()
    def init_blocks(self, blocks: nn.ModuleList) -> None:
        """Scale the output layers of blocks whose linear layers have been initialised."""
        if not self.scale_residuals:
            return
        for number, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            last = block.ffn.layers[1]
            assert isinstance(last, nn.Linear)
            for linear in (block.attn.proj, last):
                linear.weight.div_(math.sqrt(2 * number))


def truncated_normal_(tensor: Tensor) -> Tensor:
    """Fill a tensor as BEiT does: normal with a standard deviation of 0.02 before it is cut at ± 0.02."""
    return nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)


MAE_INIT = Initialization(weight_=nn.init.xavier_uniform_, token_=partial(nn.init.normal_, std=0.02))
BEIT_INIT = Initialization(
    weight_=truncated_normal_, token_=truncated_normal_, position_=truncated_normal_, scale_residuals=True
)
