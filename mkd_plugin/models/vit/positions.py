"""The fixed sine-cosine position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_positions(grid: tuple[int, int], width: int, num_prefix: int = 1) -> Tensor:
    """MAE's fixed two-dimensional sine-cosine table, (1, P + L, D) float32, zero for prefix tokens.

    The first half of the channels codes the column, the second the row, each as [sin, cos] with
    frequencies 10000^(−2i / (D/2)).

    Raises:
        ValueError: ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f'Sine-cosine positions need a width that is a multiple of 4, got {width}.')
    omega_Q = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing='ij')
    angles = [axis.flatten()[:, None] * omega_Q for axis in (columns, rows)]
    table_LD = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([table_LD.new_zeros(num_prefix, width), table_LD]).float().unsqueeze(0)
