"""Cutting a plane of tokens into windows (shape legend: ``mkd_plugin/structures.py``; h, w rows and columns of patches)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ['in_windows']

Attend = Callable[[Tensor, tuple[int, int]], Tensor]


def in_windows(x_BLE: Tensor, grid: tuple[int, int], window: int, attend: Attend) -> Tensor:
    """Apply ``attend`` to each window of ``window`` × ``window`` patches on its own.

    Where the plane is no whole number of windows, those at its right and lower border are smaller. That is what padding
    them and hiding the padding from attention computes, without computing the padding.

    Args:
        x_BLE: Patches, row-major.
        grid: Rows and columns of them.
        window: Side of a window, patches.
        attend: (W, N, E) of W windows, and rows and columns of these, to (W, N, D).

    Returns:
        (B, L, D).
    """
    plane_BhwE = x_BLE.view(len(x_BLE), *grid, -1)
    bands = []
    for top, band in pieces(grid[0], window):
        parts = [
            of_one_size(plane_BhwE[:, top : top + band[0], left : left + part[0]], (band[1], part[1]), attend)
            for left, part in pieces(grid[1], window)
        ]
        bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2))
    return (bands[0] if len(bands) == 1 else torch.cat(bands, dim=1)).flatten(1, 2)


def pieces(length: int, window: int) -> list[tuple[int, tuple[int, int]]]:
    """Whole windows along a side, then what is left: (start, (length, side of a window)) of each that is there."""
    whole = length - length % window
    found = [(0, (whole, window)), (whole, (length - whole, length - whole))]
    return [piece for piece in found if piece[1][0]]


def of_one_size(plane_BhwE: Tensor, size: tuple[int, int], attend: Attend) -> Tensor:
    """The same for a plane that is a whole number of windows of ``size``, (B, h, w, D)."""
    batch, rows, columns, width = plane_BhwE.shape
    count = rows // size[0], columns // size[1]
    cut = plane_BhwE.reshape(batch, count[0], size[0], count[1], size[1], width)
    done_WND = attend(cut.transpose(2, 3).reshape(-1, size[0] * size[1], width), size)
    put = done_WND.view(batch, *count, *size, -1).transpose(2, 3)
    return put.reshape(batch, rows, columns, -1)
