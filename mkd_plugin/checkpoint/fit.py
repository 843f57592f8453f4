"""Bringing a state dict to a network's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from mkd_plugin.checkpoint.formats.own import TABLE
from mkd_plugin.checkpoint.resize import Grid, deduce_grid, resize_positions, resize_relative

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer

__all__ = ['Fitted', 'fit']


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
