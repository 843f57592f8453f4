"""MAE's transformer decoder, which dBOT shares (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mkd_plugin.models.heads.base import Head, cls_and_patches
from mkd_plugin.models.vit import Arch, Block, sincos_positions
from mkd_plugin.models.vit.block import drop_path_rates, init_linears
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures, TokenMask, take


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

    def forward(self, features: TokenFeatures, tap: str, region: RegionTokens) -> Tensor:
        """(B, R, out_width)."""
        tokens_BND = self.embed(cls_and_patches(features, tap))
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
