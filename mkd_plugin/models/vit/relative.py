"""BEiT's relative position bias, resizable to other grids (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.precision import without_autocast


def table_length(grid: tuple[int, int]) -> int:
    """Count the table entries per head: one per offset between two patches, then cls→patch, patch→cls and cls→cls."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


class RelativePositionBias(nn.Module):
    """Learned bias per head and per offset between two tokens, added to the attention logits; initially zero.

    The table has the layout used in checkpoints of BEiT, timm and mmpretrain. All blocks share one bias in pre-training;
    each block has its own in fine-tuning. ``grid`` has the patches per column and row.
    """

    def __init__(self, *, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_length(grid), num_heads))

    def reset_parameters(self) -> None:
        """Reset the table to zero."""
        nn.init.zeros_(self.relative_position_bias_table)

    def forward(self) -> Tensor:
        """Compute the bias for cls and the patches of the grid, (1, H, N, N)."""
        return spread(self.offsets(self.grid), self.of_cls()).unsqueeze(0)

    def offsets(self, grid: tuple[int, int]) -> Tensor:
        """Compute the bias per offset between two patches of a grid (h, w): (H, 2h − 1, 2w − 1), first (1 − h, 1 − w).

        For a grid other than the table's, interpolate like timm's ``resize_rel_pos_bias_table``, but differentiably:
        linearly along each axis, with the table's entries placed at geometrically growing distances.
        """
        rows, columns = (2 * side - 1 for side in self.grid)
        table_Hab = self.relative_position_bias_table[:-3].T.view(-1, rows, columns)
        if grid == self.grid:
            return table_Hab
        down, across = (
            torch.from_numpy(interpolation(old, new)).to(table_Hab) for old, new in zip(self.grid, grid, strict=True)
        )
        with without_autocast(table_Hab):
            return down @ table_Hab @ across.T

    def within(self, grid: tuple[int, int]) -> Tensor:
        """Compute the bias per offset for a window of a larger image: crop the table where it is large enough.

        Unlike :meth:`offsets`, this keeps distances in patches instead of stretching the table to the window.
        """
        table_Hab = self.offsets((max(self.grid[0], grid[0]), max(self.grid[1], grid[1])))
        middle = table_Hab.shape[1] // 2, table_Hab.shape[2] // 2
        rows, columns = (slice(at + 1 - side, at + side) for at, side in zip(middle, grid, strict=True))
        return table_Hab[:, rows, columns]

    def of_cls(self) -> Tensor:
        """Read the entries of cls→patch, patch→cls and cls→cls, (3, H)."""
        return self.relative_position_bias_table[-3:]


def spread(offsets_Hab: Tensor, cls_3H: Tensor | None) -> Tensor:
    """Expand the bias per offset to every pair of tokens, (H, N, N): cls first if ``cls_3H`` is given, then patches."""
    sides = (offsets_Hab.shape[1] + 1) // 2, (offsets_Hab.shape[2] + 1) // 2
    length = sides[0] * sides[1]
    # entry j of sliding window i is the bias of patch i and, counted from the end, patch j
    bias_HLL = F.unfold(offsets_Hab.unsqueeze(0), sides).view(-1, length, length).flip(2)
    if cls_3H is None:
        return bias_HLL
    to_patch, from_patch, alone = cls_3H[:, :, None, None].unbind(0)
    bias_HLN = torch.cat([from_patch.expand(-1, length, 1), bias_HLL], dim=2)
    return torch.cat([torch.cat([alone, to_patch.expand(-1, 1, length)], dim=2), bias_HLN], dim=1)


@lru_cache(maxsize=512)
def interpolation(old: int, new: int) -> npt.NDArray[np.float64]:
    """Compute interpolation weights (2 new − 1, 2 old − 1) from the old offsets to the new ones along one axis.

    Old offset k is placed at the new distance 1 + q + … + q^(k − 1), with q in [1.01, 1.5] such that the outermost lies
    at new − 1. Beyond the outermost, its value is repeated.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1 else (ratio, high)
    outward = np.cumsum(ratio ** np.arange(old - 1))
    places = np.concatenate([-outward[::-1], [0.0], outward])
    wanted = np.arange(1 - new, new)
    return np.stack([np.interp(wanted, places, unit) for unit in np.eye(2 * old - 1)], axis=1)
