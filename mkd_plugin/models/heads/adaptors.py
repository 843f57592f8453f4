"""Heads of methods with several teachers: RADIO's adaptor and UNIC's ladder of projectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mkd_plugin.models.protocols import Head
from mkd_plugin.models.vit.block import MAE_INIT, Initialization
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures


@MODELS.register_module()
class ResidualAdaptor(Head):
    """RADIO's adaptor: a linear layer, residual layers (LayerNorm, GELU, linear), then LayerNorm, GELU and a linear layer.

    Weights start by PyTorch's defaults.

    Args:
        width: Width of the hidden layers; the student's by default.
        depth: Number of residual layers.
    """

    def __init__(
        self, *, in_width: int, out_width: int, grid: tuple[int, int], width: int | None = None, depth: int = 1
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        width = in_width if width is None else width
        self.embed = nn.Linear(in_width, width)
        self.layers = nn.ModuleList(self._layer(width, width) for _ in range(depth))
        self.predict = self._layer(width, out_width)

    @staticmethod
    def _layer(width: int, out_width: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, out_width))

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        x = self.embed(features.select(taps[0], region))
        for layer in self.layers:
            x = x + layer(x)
        return self.predict(x)


@MODELS.register_module()
class LadderHead(Head):
    """UNIC's ladder of projectors: one MLP (linear, GELU, linear) for each of the student's taps, summed.

    Args:
        num_taps: Number of the objective's taps; the objective sets it.
        width: Hidden channels of an MLP.
        last_width: Hidden channels of the last tap's MLP.
        initialization: Distribution of the initial weights; the objective sets the student's.
    """

    many_taps = True

    def __init__(
        self,
        *,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        num_taps: int,
        width: int = 768,
        last_width: int = 3072,
        initialization: Initialization = MAE_INIT,
    ) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid)
        widths = [*[width] * (num_taps - 1), last_width]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(in_width, hidden), nn.GELU(), nn.Linear(hidden, out_width)) for hidden in widths
        )
        self.initialization = initialization
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.initialization.init_linears(self)

    def forward(self, features: TokenFeatures, taps: Sequence[str], region: RegionTokens) -> Tensor:
        """Compute predictions, (B, R, out_width)."""
        parts = [layer(features.select(tap, region)) for layer, tap in zip(self.layers, taps, strict=True)]
        return torch.stack(parts).sum(0)
