"""Heads that predict hidden patches: MAE's transformer decoder, and mmpretrain's decoder necks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit import Arch, Block, sincos_positions
from mkd_plugin.models.vit.block import MAE_INIT, DropPath, drop_path_rates
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TokenFeatures, take


def cls_and_patches(features: TokenFeatures, tap: str) -> Tensor:
    """Read a tap's cls, if there is one, and patch tokens, without distillation token and registers, (B, 1 or 0 + V, D)."""
    tokens_BND = features.tokens(tap)
    if features.num_prefix <= 1:
        return tokens_BND
    return torch.cat([tokens_BND[:, :1], tokens_BND[:, features.num_prefix :]], dim=1)


@MODELS.register_module()
class TransformerDecoder(Head):
    """MAE's decoder: inserts mask tokens, adds positions, runs transformer blocks, and predicts the region's tokens.

    The last block and the prediction compute the region's tokens only.

    Args:
        depth: Number of blocks.
        width: Width of the decoder.
        num_heads: Attention heads.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0; dBOT's reference code uses the
            encoder's rate.
        activation_checkpointing: Recompute activations in the backward pass to save memory.
    """

    reaches_hidden = True
    pos_embed: Tensor

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        depth: int = 8,
        width: int = 512,
        num_heads: int = 16,
        drop_path_rate: float = 0.0,
        activation_checkpointing: bool | str = False,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        Arch(width, depth, num_heads)  # checks the sizes
        self.embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer('pos_embed', sincos_positions(grid, width))
        self.stream: nn.Module = nn.Identity()  # may set the type of the residual stream
        self.layers = nn.ModuleList(
            Block(width=width, num_heads=num_heads, recompute=activation_checkpointing) for _ in range(depth)
        )
        self.drop_path = DropPath(drop_path_rates(drop_path_rate, depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: linear layers xavier-uniform, mask token normal(0.02)."""
        MAE_INIT.init_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        tokens_BND, prefix = self.embed(cls_and_patches(features, taps[0])), min(features.num_prefix, 1)
        if features.mask is not None:
            assert features.mask.ids_hide_BM is not None
            hidden_BMD = self.mask_token.to(tokens_BND.dtype).expand(*features.mask.ids_hide_BM.shape, -1)
            patches_BLD = features.mask.fill(tokens_BND[:, prefix:], hidden_BMD)
            tokens_BND = torch.cat([tokens_BND[:, :prefix], patches_BLD], dim=1)
        tokens_BND = self.stream(tokens_BND + self.pos_embed[:, 1 - prefix :])
        kept = self.drop_path(tokens_BND)
        for block, factors in zip(self.layers[:-1], kept[:-1], strict=True):
            tokens_BND, _ = block(tokens_BND, kept_2B11=factors)
        tokens_BRD, _ = self.layers[-1](tokens_BND, region.rows(prefix), kept_2B11=kept[-1])
        return self.predict(self.norm(tokens_BRD))


@MODELS.register_module()
class NeckHead(Head):
    """Wraps a ``neck(tokens, ids_restore)`` with one prediction per patch, such as mmpretrain's ``MAEPretrainDecoder``.

    Such necks drop the cls token, so the region must not contain it. A trial run at construction checks the neck.

    Args:
        neck: Config of the neck.

    Raises:
        ValueError: The neck rejects the student's tokens, or does not predict ``out_width`` values per patch.
    """

    reaches_hidden = True
    predicts_cls = False
    reads_cls = True

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int], neck: dict[str, Any]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        self.neck = build(neck)
        self.reset_parameters()
        length = grid[0] * grid[1]
        try:
            with torch.no_grad():
                trial = self.neck(torch.zeros(1, 1 + length, in_width), torch.arange(length).unsqueeze(0))
        except RuntimeError as error:
            raise ValueError(
                f"{type(self.neck).__name__} rejects the student's tokens, (1, 1 + {length}, {in_width}) for one "
                f'image: {error}'
            ) from error
        if trial.shape != (1, length, out_width):
            raise ValueError(
                f'{type(self.neck).__name__} gives {tuple(trial.shape)} for one image; (1, {length}, {out_width}) is '
                "needed: one prediction of the target's width per patch."
            )

    def reset_parameters(self) -> None:
        """Let the neck draw new weights by its own initialisation."""
        for module in self.neck.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            module.is_init = False
        if hasattr(self.neck, 'init_weights'):
            self.neck.init_weights()

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        tokens_BND = cls_and_patches(features, taps[0])
        if features.mask is None:  # the tokens are already all patches in order
            ids_restore_BL = torch.arange(tokens_BND.shape[1] - 1, device=tokens_BND.device).expand(len(tokens_BND), -1)
        else:
            assert features.mask.ids_restore_BL is not None
            ids_restore_BL = features.mask.ids_restore_BL
        predictions_BLD = self.neck(tokens_BND, ids_restore_BL)
        return take(predictions_BLD, region.ids_BR)
