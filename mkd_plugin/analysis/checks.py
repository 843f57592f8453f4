"""What every measurement wants of its input."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

FLAVOURS = ('cl-vs-mim', 'dbot')


def check_flavour(flavour: str) -> None:
    """Raise ValueError unless a public convention is named."""
    if flavour not in FLAVOURS:
        raise ValueError(f'flavour={flavour!r}: use one of {list(FLAVOURS)}.')


def check_finite(values: Tensor, name: str) -> None:
    """Raise ValueError if there is a NaN or an infinity. ``name`` says where the values come from."""
    finite = torch.isfinite(values)
    if not finite.all():
        raise ValueError(
            f'{name}: {int((~finite).sum())} of {values.numel()} values are NaN or infinite. Compute in float32 instead of '
            'half precision; if they stay, the checkpoint is broken there.'
        )


def patches_of(tokens_BND: Tensor, grid: tuple[int, int], num_prefix: int, name: str) -> Tensor:
    """The patch tokens, (B, L, D), at least float32.

    Args:
        tokens_BND: Prefix tokens, then patches, row-major.
        grid: Patches per column and row.
        num_prefix: Tokens before the patches.
        name: Where the tokens come from, for messages.

    Raises:
        ValueError: They are not so many tokens, or not all finite.
    """
    if tokens_BND.dim() != 3 or tokens_BND.shape[1] != num_prefix + prod(grid):
        raise ValueError(
            f'{name}: tokens must have the shape (B, {num_prefix} + {grid[0]} · {grid[1]}, D), got '
            f'{tuple(tokens_BND.shape)}. Give the grid and the number of prefix tokens of this network at this image size.'
        )
    check_finite(tokens_BND, name)
    return widen(tokens_BND[:, num_prefix:])


def widen(values: Tensor) -> Tensor:
    """The same values in float32 if they came in half precision; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
