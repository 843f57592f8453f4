"""Patch embedding and fixed sine-cosine positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.structures import take


def cut_patches(images_BCHW: Tensor, size: int) -> Tensor:
    """Cut images into square patches of ``size`` pixels, row-major, (B, L, C, size, size)."""
    batch, channels, height, width = images_BCHW.shape
    cut = images_BCHW.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def hw_of(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of an image, pixels. Raises ValueError unless they are one or two whole numbers."""
    sides = [img_size] * 2 if isinstance(img_size, int) else list(img_size) if isinstance(img_size, Sequence) else []
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f'img_size={img_size}: give the side of a square image, or (height, width), whole numbers.')
    return sides[0], sides[1]


def check_size(images_BCHW: Tensor, network: Any) -> None:
    """Raise ValueError unless images have the size that a network was built for."""
    if images_BCHW.shape[-2:] != network.image_hw:
        raise ValueError(
            f'The network was built for img_size={network.img_size}, got images of {tuple(images_BCHW.shape[-2:])}. '
            "Change the backbone's img_size or the pipeline's crop size."
        )


def grid_of(image_hw: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Count the patches per column and row of an image. Raises ValueError if a side is not a multiple."""
    if patch_size < 1:
        raise ValueError(f'patch_size={patch_size}: it must be at least 1 pixel.')
    for side in image_hw:
        if side <= 0 or side % patch_size:
            near = max(side // patch_size, 1) * patch_size
            raise ValueError(
                f'img_size={side} is not divisible by patch_size={patch_size}. Use {near} or another patch size.'
            )
    return image_hw[0] // patch_size, image_hw[1] // patch_size


class PatchEmbed(nn.Module):
    """Linear patch embedding, stored as a convolution because checkpoints store it that way."""

    def __init__(self, *, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, width, patch_size, patch_size)

    def forward(self, images_BCHW: Tensor, ids_keep_BV: Tensor | None = None) -> Tensor:
        """Embed all patches (B, L, D), or only the selected ones (B, V, D)."""
        patches_BLC = cut_patches(images_BCHW, self.patch_size).flatten(2)
        if ids_keep_BV is not None:
            patches_BLC = take(patches_BLC, ids_keep_BV)
        return F.linear(patches_BLC, self.projection.weight.flatten(1), self.projection.bias)


def sincos_positions(grid: tuple[int, int], width: int, num_prefix: int = 1) -> Tensor:
    """Build MAE's fixed 2-D sine-cosine position table, (1, P + L, D) float32, zero for prefix tokens.

    The first half of the channels encodes the column, the second half the row, each as [sin, cos] with frequencies
    10000^(−2i / (D/2)).

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
