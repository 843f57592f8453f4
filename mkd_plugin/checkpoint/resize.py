"""Resizing of position tables to another grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['resize_positions']


def resize_positions(
    table_1ND: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int = 1
) -> Tensor:
    """Resize a position table to another grid as timm's ``resample_abs_pos_embed`` does (antialiased bicubic, float32).

    Args:
        table_1ND: (1, P + L_old, D).

    Returns:
        (1, P + L_new, D) in the dtype of the input; the very same tensor if the grids are equal.
    """
    if old_grid == new_grid:
        return table_1ND
    prefix, patches = table_1ND[:, :num_prefix], table_1ND[:, num_prefix:]
    image = patches.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode='bicubic', antialias=True)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)
