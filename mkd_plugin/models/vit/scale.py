"""Layer scale: a learned factor per channel on a block's update (BEiT, CaiT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """x · weight; the parameter's name is that of mmpretrain's and mmcv's ``LayerScale``.

    Args:
        width: Channels of a token.
        start: First value of every factor.
    """

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.full((width,), start))

    def reset_parameters(self) -> None:
        """Back to the first value."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        return x_BND * self.weight
