"""Resizing of position tables to another grid, as timm does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from mkd_plugin.checkpoint.formats.own import TABLE

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer

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


@dataclass
class Fitted:
    """Tensors as the network's grid and its kind of relative positions want them.

    Attributes:
        tensors: By our names; those that could not be fitted as they were.
        resized: Names of those that are other than in the file.
    """

    tensors: dict[str, Tensor]
    resized: set[str] = field(default_factory=set)


def fit(tensors: Mapping[str, Tensor], network: VisionTransformer, grid: Grid | None) -> Fitted:
    """Resize the tables of positions, and repeat a shared relative table for every block if the network has one in each.

    Args:
        tensors: By our names.
        network: The network they are for.
        grid: Patches per column and row that the tables are for; None to deduce it.

    Raises:
        ValueError: The grid is not known and cannot be deduced.
    """
    done = Fitted(dict(tensors))
    if network.relative_position == 'per_block' and TABLE in done.tensors:
        shared = done.tensors.pop(TABLE)
        for index in range(network.arch.depth):
            done.tensors[f'layers.{index}.attn.{TABLE}'] = shared
            done.resized.add(f'layers.{index}.attn.{TABLE}')
    own = network.state_dict()
    for name in own:
        if name == 'pos_embed' and name in done.tensors:
            prefix = 2 if 'dist_token' in tensors else 1
            if prefix == network.num_placed and done.tensors[name].shape[-1] == own[name].shape[-1]:
                old = source_grid(done.tensors[name].shape[1] - prefix, network, grid, name)
                replace(done, name, resize_positions(done.tensors[name], old, network.grid, prefix))
        elif name.endswith(TABLE) and name in done.tensors and done.tensors[name].shape[1] == own[name].shape[1]:
            old = source_grid(done.tensors[name].shape[0] - 3, network, grid, name, relative=True)
            replace(done, name, resize_relative(done.tensors[name], old, network.grid))
    return done


def replace(done: Fitted, name: str, tensor: Tensor) -> None:
    """Take a tensor's new value, and say so if it is new."""
    if tensor is not done.tensors[name]:
        done.tensors[name] = tensor
        done.resized.add(name)


def source_grid(
    entries: int, network: VisionTransformer, grid: Grid | None, name: str, *, relative: bool = False
) -> Grid:
    """The grid that a table in the file is for.

    Raises:
        ValueError: It is not known, or the one that is given does not fit.
    """
    if grid is None:
        deduced = deduce_grid(entries, network.grid, relative=relative)
        if deduced is None:
            raise ValueError(
                f'{name} has {entries} entries: for which grid, the file does not tell. Give load_backbone '
                'grid=(rows, columns).'
            )
        return deduced
    rows, columns = (2 * side - 1 for side in grid) if relative else grid
    if rows * columns != entries:
        raise ValueError(f'grid={grid}: {name} has {entries} entries in the file, and this grid has {rows * columns}.')
    return grid
