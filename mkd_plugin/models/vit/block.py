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
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mkd_plugin.models.vit.attention import Attention, AttentionOutput, LayerScale
from mkd_plugin.models.vit.relative import RelativePositionBias
from mkd_plugin.registry import check_values, parameters_of
from mkd_plugin.structures import take
from mkd_plugin.utils.draws import draw_uniform


@dataclass(frozen=True)
class Arch:
    """Size of a transformer; the MLP's hidden width is ``width · mlp_ratio``, rounded down.

    Raises:
        ValueError: A size is not positive, or ``width`` is not a multiple of ``num_heads``.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        whole = self.width, self.depth, self.num_heads
        if min(*whole, self.mlp_ratio) <= 0 or set(map(type, whole)) != {int} or self.width % self.num_heads:
            raise ValueError(
                f'{self}: sizes must be positive, whole except mlp_ratio, and width a multiple of num_heads.'
            )


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


class SwiGLU(nn.Module):
    """Halve the channels: SiLU of the first half, the gate, times the second."""

    def forward(self, x_BNE: Tensor) -> Tensor:
        """Apply the gate."""
        gate, value = x_BNE.chunk(2, dim=-1)
        return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    'gelu': nn.GELU,
    'quick_gelu': QuickGELU,
    'gelu_tanh': partial(nn.GELU, approximate='tanh'),
    'swiglu': SwiGLU,
}


class FeedForward(nn.Module):
    """Two-layer MLP, nested like mmcv's ``FFN`` so that state-dict keys match.

    With 'swiglu', the first layer computes gate and value, ``2 · hidden`` channels. ``inner_norm``: epsilon of a LayerNorm
    before the second layer; None for no norm.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: int,
        activation: str = 'gelu',
        layer_scale: float | None = None,
        inner_norm: float | None = None,
    ) -> None:
        super().__init__()
        inner = nn.Linear(width, 2 * hidden if activation == 'swiglu' else hidden)
        norm = [] if inner_norm is None else [nn.LayerNorm(hidden, eps=inner_norm)]
        first = nn.Sequential(inner, ACTIVATIONS[activation](), *norm)
        self.layers = nn.Sequential(first, nn.Linear(hidden, width))
        self.gamma2: nn.Module = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Apply the MLP to every token."""
        return self.gamma2(self.layers(x_BND))


def keep_products(scaled: bool) -> Any:
    """Build the contexts of ``checkpoint`` that keep linear layers and attention; the MLP's result only if it is ``scaled``."""

    def keep(_: Any, operation: Any, *args: Any, **options: Any) -> CheckpointPolicy:
        linear = operation is torch.ops.aten.addmm.default and (scaled or args[2].shape[0] <= args[2].shape[1])
        kept = linear or 'attention' in operation.name()
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(keep)  # type: ignore[no-untyped-call]


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
        rope: Form of the rotary positions; None for none.
        inner_norm: Whether a LayerNorm comes before the last linear layer of the 'mlp', of 'both' branches, or of neither.
        recompute: Recompute activations in the backward pass (activation checkpointing): True for all, about a third more
            time for a fraction of the memory; 'selective' for all but products and attention; False for none.
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
        rope: str | None = None,
        inner_norm: str | None = None,
        recompute: bool | str = False,
    ) -> None:
        super().__init__()
        if recompute not in (False, True, 'selective'):
            raise ValueError(f"activation_checkpointing={recompute!r}: use False, True or 'selective'.")
        # mmengine's `activation_checkpointing` uses the re-entrant form, which drops the gradients of relation taps
        self.recompute: dict[str, Any] = dict(use_reentrant=False) if recompute else {}
        if recompute == 'selective':
            self.recompute['context_fn'] = partial(keep_products, layer_scale is not None)
        self.ln1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = self.attention_class(
            width=width,
            num_heads=num_heads,
            relative_grid=relative_grid,
            layer_scale=layer_scale,
            rope=rope,
            inner_norm=norm_eps if inner_norm == 'both' else None,
        )
        self.ln2 = nn.LayerNorm(width, eps=norm_eps)
        self.ffn = FeedForward(
            width=width,
            hidden=int(width * mlp_ratio + 1e-6),  # the ratio may be the quotient of two widths
            activation=activation,
            layer_scale=layer_scale,
            inner_norm=None if inner_norm is None else norm_eps,
        )

    def forward(
        self,
        x_BND: Tensor,
        rows_BR: Tensor | None = None,
        bias_1HNN: Tensor | None = None,
        kept_2B11: Tensor | None = None,
        turns_BNK: Tensor | None = None,
    ) -> tuple[Tensor, AttentionOutput]:
        """Run the block.

        Args:
            x_BND: Tokens.
            rows_BR: Tokens to return, computed without the others; None for all.
            bias_1HNN: Relative position bias shared by all blocks.
            kept_2B11: Factors of both branches, of :class:`DropPath`; None to skip neither.
            turns_BNK: Cosines and sines of rotary positions.

        Returns:
            The updated tokens (B, R, D), and the output of the attention layer.
        """
        if not self.training:  # a frozen block skips nothing
            kept_2B11 = None
        if self.recompute and torch.is_grad_enabled():
            given = x_BND, rows_BR, bias_1HNN, kept_2B11, turns_BNK
            x_BND, update_BND, attention = checkpoint(self._branches, *given, **self.recompute)
        else:
            x_BND, update_BND, attention = self._branches(x_BND, rows_BR, bias_1HNN, kept_2B11, turns_BNK)
        return add_branch(x_BND, update_BND, kept_2B11, 1), attention

    def _branches(
        self,
        x_BND: Tensor,
        rows_BR: Tensor | None,
        bias_1HNN: Tensor | None,
        kept_2B11: Tensor | None,
        turns_BNK: Tensor | None,
    ) -> tuple[Tensor, Tensor, AttentionOutput]:
        """Compute the tokens after attention, the MLP's update, which the caller adds, and the output of the attention."""
        attention = self.attn(self.ln1(x_BND), rows_BR, bias_1HNN, turns_BNK)
        x_BND = add_branch(x_BND if rows_BR is None else take(x_BND, rows_BR), attention.update_BRD, kept_2B11, 0)
        return x_BND, self.ffn(self.ln2(x_BND)), attention

    def stop_inside(
        self, x_BND: Tensor, bias_1HNN: Tensor | None, turns_BNK: Tensor | None, kinds: set[str]
    ) -> AttentionOutput:
        """Compute only as much of the attention as these kinds of taps need."""
        x_BND = self.ln1(x_BND)
        if 'attention' in kinds:
            return self.attn(x_BND, None, bias_1HNN, turns_BNK)
        return self.attn.project(x_BND, turns_BNK, values=bool(kinds & {'qkv', 'value'}))


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


def drop_path_rates(rate: float | Sequence[float], depth: int) -> list[float]:
    """Stochastic depth per block: growing linearly from 0 at the first block to ``rate`` at the last, or as listed.

    Raises:
        ValueError: A rate is no probability below 1, or the list has another length.
    """
    rates = list(rate) if isinstance(rate, Sequence) else [rate]
    if not all(0 <= one < 1 for one in rates):
        raise ValueError(f'drop_path_rate={rate}: it must lie in [0, 1), a probability of skipping a branch.')
    if not isinstance(rate, Sequence):
        return [rate * i / max(depth - 1, 1) for i in range(depth)]
    if len(rates) != depth:
        raise ValueError(
            f'drop_path_rate={rate}: it lists {len(rates)} rates, but there are {depth} blocks. Give a number.'
        )
    return rates


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
