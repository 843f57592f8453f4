"""MAE's transformer decoder, which dBOT shares (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit import Arch, Block, sincos_positions
from mkd_plugin.models.vit.block import drop_path_rates, init_linears
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TokenFeatures, TokenMask, take


def cls_and_patches(features: TokenFeatures, tap: str) -> Tensor:
    """Read the tokens of a tap without further prefix tokens (distillation, registers), (B, 1 + V, D)."""
    tokens_BND = features.tokens(tap)
    if features.num_prefix == 1:
        return tokens_BND
    return torch.cat([tokens_BND[:, :1], tokens_BND[:, features.num_prefix :]], dim=1)


@MODELS.register_module()
class TransformerDecoder(Head):
    """Fills hidden places with a mask token, adds positions, runs blocks, and predicts the region's tokens.

    The last block and the prediction compute the region's tokens only: the others would be thrown away.

    Args:
        in_width: Width of the student's tokens.
        out_width: Width of the target.
        grid: The student's grid.
        depth: Blocks.
        width: Width of the decoder.
        num_heads: Attention heads.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0; dBOT's reference code uses the
            encoder's rate.
        activation_checkpointing: Compute every block again in the backward pass instead of keeping its activations.
    """

    reaches_hidden = True

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
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        Arch(width, depth, num_heads)  # checks the sizes
        self.embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer('pos_embed', sincos_positions(grid, width))
        self.layers = nn.ModuleList(
            Block(width=width, num_heads=num_heads, drop_path=rate, recompute=activation_checkpointing)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: xavier-uniform linears, mask token normal(0.02)."""
        init_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """(B, R, out_width)."""
        tokens_BND = self.embed(cls_and_patches(features, taps[0]))
        if features.mask is not None:
            tokens_BND = self._fill_hidden(tokens_BND, features.mask)
        tokens_BND = tokens_BND + self.pos_embed
        for block in self.layers[:-1]:
            tokens_BND, _ = block(tokens_BND)
        tokens_BRD, _ = self.layers[-1](tokens_BND, region.rows(num_prefix=1))
        return self.predict(self.norm(tokens_BRD))

    def _fill_hidden(self, tokens_BND: Tensor, mask: TokenMask) -> Tensor:
        """cls and visible tokens → cls and all L patches in row-major order."""
        assert mask.ids_restore_BL is not None
        cls, visible_BVD = tokens_BND[:, :1], tokens_BND[:, 1:]
        batch, visible, width = visible_BVD.shape
        hidden = self.mask_token.to(visible_BVD.dtype).expand(batch, mask.ids_restore_BL.shape[1] - visible, width)
        return torch.cat([cls, take(torch.cat([visible_BVD, hidden], dim=1), mask.ids_restore_BL)], dim=1)


@MODELS.register_module()
class NeckHead(Head):
    """Wraps ``neck(tokens, ids_restore)`` that gives one prediction a patch, such as mmpretrain's ``MAEPretrainDecoder``.

    Such necks drop the cls token, so the region must be without it. The neck is tried on empty tokens when it is built.

    Args:
        in_width: Width of the student's tokens.
        out_width: Width of the target; the neck must predict it.
        grid: The student's grid.
        neck: The host's config.

    Raises:
        ValueError: The neck does not take the student's tokens, or does not give ``out_width`` values for each patch.
    """

    reaches_hidden = True
    predicts_cls = False

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
                f"{type(self.neck).__name__} does not take the student's tokens, (1, 1 + {length}, {in_width}) for one "
                f'image: {error}'
            ) from error
        if trial.shape != (1, length, out_width):
            raise ValueError(
                f'{type(self.neck).__name__} gives {tuple(trial.shape)} for one image; (1, {length}, {out_width}) is '
                "needed: the target's width for each patch."
            )

    def reset_parameters(self) -> None:
        """Let the neck draw new weights in its own way."""
        for module in self.neck.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            module.is_init = False
        if hasattr(self.neck, 'init_weights'):
            self.neck.init_weights()

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """(B, R, out_width)."""
        tokens_BND = cls_and_patches(features, taps[0])
        if features.mask is None:  # all patches are there, in order
            ids_restore_BL = torch.arange(tokens_BND.shape[1] - 1, device=tokens_BND.device).expand(len(tokens_BND), -1)
        else:
            assert features.mask.ids_restore_BL is not None
            ids_restore_BL = features.mask.ids_restore_BL
        predictions_BLD = self.neck(tokens_BND, ids_restore_BL)
        return take(predictions_BLD, region.ids_BR)
