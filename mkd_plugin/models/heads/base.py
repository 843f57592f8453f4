"""The protocol of a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mkd_plugin.structures import RegionTokens, TokenFeatures


class Head(nn.Module):
    """Predicts the target at the tokens of a region.

    The surrounding objective fills in the three sizes; a config may state ``out_width`` to have it checked.

    Args:
        in_width: Width of the student's tokens.
        out_width: Width of the target.
        grid: The student's grid.

    Attributes:
        reaches_hidden: Whether it predicts patches that the student did not see.
        predicts_cls: Whether it predicts the cls token.
        kinds: What it can take: 'tokens', 'relation' or both.
    """

    reaches_hidden = False
    predicts_cls = True
    kinds: tuple[str, ...] = ('tokens',)

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.in_width, self.out_width, self.grid = in_width, out_width, grid

    def reset_parameters(self) -> None:
        """Draw new weights, as at the start of a stage."""

    def forward(self, features: TokenFeatures, tap: str, region: RegionTokens) -> Tensor:
        """Predictions (B, R, out_width)."""
        raise NotImplementedError


def cls_and_patches(features: TokenFeatures, tap: str) -> Tensor:
    """The tokens of a tap without further prefix tokens (distillation, registers), (B, 1 + V, D)."""
    tokens_BND = features.tokens(tap)
    if features.num_prefix == 1:
        return tokens_BND
    return torch.cat([tokens_BND[:, :1], tokens_BND[:, features.num_prefix :]], dim=1)
