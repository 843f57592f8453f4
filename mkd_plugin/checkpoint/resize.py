"""Resizing of position tables to another grid, as timm does it."""

from __future__ import annotations

from torch import Tensor

__all__ = ['Grid', 'deduce_grid', 'resize_positions', 'resize_relative']

Grid = tuple[int, int]


def resize_positions(table_1ND: Tensor, old_grid: Grid, new_grid: Grid, num_prefix: int = 1) -> Tensor:
    """Resize a position table to another grid: timm's ``resample_abs_pos_embed`` (antialiased bicubic, float32).

    Args:
        table_1ND: (1, P + L_old, D).

    Returns:
        (1, P + L_new, D) in the dtype of the input; the very same tensor if the grids are equal.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed  # seconds, which `import mkd_plugin` need not take

    return resample_abs_pos_embed(table_1ND, list(new_grid), list(old_grid), num_prefix_tokens=num_prefix)


def resize_relative(table_RH: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Resize a relative position table: timm's ``resize_rel_pos_bias_table`` (a geometric grid, linear interpolation).

    The last three rows, which are about cls, are kept.

    Args:
        table_RH: (R_old, H) with R = (2 · rows − 1)(2 · columns − 1) + 3.

    Returns:
        (R_new, H); the very same tensor if the grids are equal.
    """
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    shape = ((2 * new_grid[0] - 1) * (2 * new_grid[1] - 1) + 3, table_RH.shape[1])
    if old_grid[0] == old_grid[1]:
        return resize_rel_pos_bias_table(table_RH, new_grid, shape)
    return resize_rel_pos_bias_table(table_RH, new_grid, shape, old_window_size=old_grid)


def deduce_grid(entries: int, own_grid: Grid, *, relative: bool = False) -> Grid | None:
    """The grid of a table that nothing else tells: a square, or the network's own.

    Args:
        entries: How many entries it has, without those of cls and other prefix tokens.
        own_grid: Grid of the network it is for.
        relative: Whether they are offsets, (2 · rows − 1)(2 · columns − 1), and not patches.

    Returns:
        None if it can be neither, or both and they differ.
    """
    size = tuple(2 * side - 1 for side in own_grid) if relative else own_grid
    root = round(entries**0.5)
    square = root**2 == entries and (not relative or root % 2 == 1)
    side = (root + 1) // 2 if relative else root
    fits = size[0] * size[1] == entries
    if square and fits:
        return own_grid if own_grid[0] == own_grid[1] else None
    if square:
        return side, side
    return own_grid if fits else None
