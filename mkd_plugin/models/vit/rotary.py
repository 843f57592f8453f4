"""Rotary positions (RoPE): queries and keys of patches are turned by angles that their places give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mkd_plugin.structures import TokenMask, take


def keep(x_BHNK: Tensor, turns: None, rows_BR: Tensor | None = None) -> Tensor:
    """Return queries or keys of a network without rotary positions as they are."""
    return x_BHNK


def cosines_and_sines(turns_BNK: Tensor, rows_BR: Tensor | None) -> tuple[Tensor, ...]:
    """Split the cosines and sines of some tokens, None for all, (B, 1, R, K/2) each."""
    if rows_BR is not None:
        turns_BNK = take(turns_BNK.expand(len(rows_BR), -1, -1), rows_BR)
    return turns_BNK.unsqueeze(1).chunk(2, dim=-1)


def turn_halves(x_BHNK: Tensor, turns_BNK: Tensor, rows_BR: Tensor | None = None) -> Tensor:
    """Turn channel j together with channel j + K/2 (DINOv3)."""
    cos, sin = cosines_and_sines(turns_BNK, rows_BR)
    first, second = x_BHNK.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHNK.dtype)


def turn_pairs(x_BHNK: Tensor, turns_BNK: Tensor, rows_BR: Tensor | None = None) -> Tensor:
    """Turn channel 2j together with channel 2j + 1 (EVA-02)."""
    cos, sin = cosines_and_sines(turns_BNK, rows_BR)
    first, second = x_BHNK[..., ::2], x_BHNK[..., 1::2]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(x_BHNK.dtype)


# Both in float32 and in timm's order of operations, so that its angles are the same.
def dinov3_angles(places: Tensor, side: int, exponents: Tensor) -> Tensor:
    """Angles of the centres of patches, whose coordinates go from −1 to 1 along each side; periods 1 … 100."""
    return 2 * math.pi * (2 * ((places + 0.5) / side) - 1) / 100.0**exponents


def eva02_angles(places: Tensor, side: int, exponents: Tensor) -> Tensor:
    """Angles of patches, whose coordinates go from 0 to 16 whatever the grid; base 10000."""
    return places / side * 16 * (1 / 10000.0**exponents)


class RotaryForm(NamedTuple):
    """One way to turn queries and keys."""

    turn: Callable[..., Tensor]  #: Turns queries or keys (B, H, N, K) by ``turns``; third argument: their tokens
    angles: Callable[[Tensor, int, Tensor], Tensor]  #: (places (n, 1), side n, exponents (K/4,)) → (n, K/4)


FORMS: dict[str | None, RotaryForm] = {
    'dinov3': RotaryForm(turn_halves, dinov3_angles),
    'eva02': RotaryForm(turn_pairs, eva02_angles),
}


class RotaryPositions(nn.Module):
    """Angles of all tokens of a grid, for the blocks of a network; those of prefix tokens are 0.

    Half of a head's channels is turned by the row, the other half by the column.

    Args:
        form: 'dinov3' or 'eva02'.
        grid: Patches per column and row.
        channels: K, channels of a head.
        num_prefix: P, tokens before the patches.

    Raises:
        ValueError: ``channels`` is not a multiple of 4.
    """

    turns: Tensor

    def __init__(self, *, form: str, grid: tuple[int, int], channels: int, num_prefix: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"rope='{form}' needs heads of a multiple of 4 channels, got {channels}. Check num_heads.")
        self.form, self.channels, self.num_prefix = form, channels, num_prefix
        self.register_buffer('turns', self.at(grid), persistent=False)

    def at(self, grid: tuple[int, int]) -> Tensor:
        """Compute cosines and sines for a grid, (1, P + L, K), on the device and in the dtype of ``turns``, once they exist."""
        (rows, columns), like = grid, getattr(self, 'turns', None)
        quarter, options = self.channels // 4, dict[str, Any](device=None if like is None else like.device)
        exponents = torch.arange(quarter, dtype=torch.float32, **options) / quarter
        down, across = (
            FORMS[self.form].angles(torch.arange(side, dtype=torch.float32, **options)[:, None], side, exponents)
            for side in grid
        )
        angles_LK = torch.cat([down.repeat_interleave(columns, dim=0), across.repeat(rows, 1)], dim=1)
        angles_NK = torch.cat([angles_LK.new_zeros(self.num_prefix, 2 * quarter), angles_LK])
        turns_1NK = torch.cat([angles_NK.cos(), angles_NK.sin()], dim=1).unsqueeze(0)
        return turns_1NK if like is None else turns_1NK.to(like.dtype)

    def forward(self, mask: TokenMask | None) -> Tensor:
        """Return the turns of all tokens (1, N, K), or under a mask those of the prefix and the visible patches (B, N, K)."""
        if mask is None:
            return self.turns
        assert mask.ids_keep_BV is not None
        turns_BNK = self.turns.expand(len(mask.ids_keep_BV), -1, -1)
        patches_BVK = take(turns_BNK, mask.ids_keep_BV + self.num_prefix)
        return torch.cat([turns_BNK[:, : self.num_prefix], patches_BVK], dim=1)
