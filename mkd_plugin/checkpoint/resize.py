"""Resize position tables to another grid, as timm does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mkd_plugin.checkpoint.formats.tables import RELATIVE_TABLE
from mkd_plugin.checkpoint.infer_arch import Grid, LoadableViT, count_placed, infer_grid
from mkd_plugin.checkpoint.read import CheckpointError

# timm is imported inside functions: `import mkd_plugin`, which reads no position table, would take seconds longer.


def resize_positions(table_1ND: Tensor, old_grid: Grid, new_grid: Grid, num_prefix: int = 1) -> Tensor:
    """Resize an absolute table (1, P + L_old, D) with timm's ``resample_abs_pos_embed`` (antialiased bicubic, float32).

    The ``num_prefix`` = P rows before the patches are kept. Returns (1, P + L_new, D) in the dtype of the input; the input
    itself if the grids are equal.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    return resample_abs_pos_embed(table_1ND, list(new_grid), list(old_grid), num_prefix_tokens=num_prefix)


def resize_relative(table_RH: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Resize a relative table with timm's ``resize_rel_pos_bias_table`` (geometric grid, linear interpolation).

    The last three rows, which belong to cls, are kept; R = (2 · rows − 1)(2 · columns − 1) + 3.
    """
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    shape = ((2 * new_grid[0] - 1) * (2 * new_grid[1] - 1) + 3, table_RH.shape[1])
    if old_grid[0] == old_grid[1]:
        return resize_rel_pos_bias_table(table_RH, new_grid, shape)
    return resize_rel_pos_bias_table(table_RH, new_grid, shape, old_window_size=old_grid)


def resize_for_network(tensors: Mapping[str, Tensor], network: LoadableViT, grid: Grid | None) -> dict[str, Tensor]:
    """Resize position tables to the network's grid; copy a shared relative table to every block if the network needs it.

    Tensors that do not change stay the same objects. Raises CheckpointError if ``grid``, that of the file's tables, is neither
    given nor inferred, or does not fit a table.
    """
    resized = dict(tensors)
    if network.relative_position == 'per_block' and RELATIVE_TABLE in tensors:
        shared = resized.pop(RELATIVE_TABLE)
        resized |= {f'layers.{index}.attn.{RELATIVE_TABLE}': shared for index in range(network.arch.depth)}
    num_prefix = count_placed(tensors) or network.num_placed  # a DenseViT with windows has the position of cls only
    for name, own in network.state_dict().items():
        table = resized.get(name)
        if table is None or table.shape[-1] != own.shape[-1]:
            continue
        if name == 'pos_embed' and num_prefix == network.num_placed:
            old_grid = grid_of_table(table.shape[1] - num_prefix, network, grid, name)
            resized[name] = resize_positions(table, old_grid, network.grid, num_prefix)
        elif name.endswith(RELATIVE_TABLE):
            old_grid = grid_of_table(table.shape[0] - 3, network, grid, name, relative=True)
            resized[name] = resize_relative(table, old_grid, network.grid)
    return resized


def grid_of_table(
    num_entries: int, network: LoadableViT, grid: Grid | None, name: str, *, relative: bool = False
) -> Grid:
    """Return the given grid if it fits a table of the file, or infer one. Raises CheckpointError if that fails."""
    if grid is None:
        inferred = infer_grid(num_entries, network.grid, relative=relative)
        if inferred is None:
            raise CheckpointError(
                f'{name} has {num_entries} entries, and the file does not say for which grid. Give grid=(rows, '
                'columns) to load_backbone or in init_cfg.'
            )
        return inferred
    rows, columns = (2 * side - 1 for side in grid) if relative else grid
    if rows * columns != num_entries:
        raise CheckpointError(
            f'grid={grid}: {name} has {num_entries} entries in the file, and this grid has {rows * columns}.'
        )
    return grid
