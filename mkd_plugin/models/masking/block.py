"""Block-wise masking (BEiT), drawn on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mkd_plugin.models.protocols import Masking, StudentContext, TeacherFeatures
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask

ATTEMPTS = 10  # BEiT gives an image up when so many blocks in a row do not fit


def propose_blocks(area_B: Tensor, aspect_B: Tensor, place_2B: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """One rectangle an image.

    Args:
        area_B: Wanted area, patches.
        aspect_B: Height over width.
        place_2B: Where it stands, uniform in [0, 1): row, column.
        grid: Patches per column and row.

    Returns:
        block_BL (True inside), and fits_B: whether it is smaller than the grid, both ways, as BEiT asks.
    """
    height_B, width_B = (area_B * aspect_B).sqrt().round(), (area_B / aspect_B).sqrt().round()
    rows, columns = grid
    fits_B = (height_B < rows) & (width_B < columns)
    top_B = (place_2B[0] * (rows - height_B + 1)).floor()
    left_B = (place_2B[1] * (columns - width_B + 1)).floor()
    row_R, column_C = (torch.arange(n, device=area_B.device) for n in grid)
    in_rows = (row_R >= top_B[:, None]) & (row_R < (top_B + height_B)[:, None])
    in_columns = (column_C >= left_B[:, None]) & (column_C < (left_B + width_B)[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :]).flatten(1), fits_B


@MODELS.register_module()
class BlockMasking(Masking):
    """Hides rectangles until *at most* ``num_hidden`` patches are hidden, so the number differs between images.

    As BEiT's generator: a block has an area U(min_block, what remains) and an aspect log-uniform in
    (min_aspect, 1 / min_aspect); it counts if it hides something new and not more than remains; after ten failures in a
    row an image is done. Here all images of a batch draw side by side, without reading anything back; ``max_draws`` blocks
    are tried an image instead of as many as it takes (with 64 of them a second try for more changes one image in
    thousands).

    Args:
        student: The student, for its grid; it must see the full length (:class:`MaskTokenViT`).
        num_hidden: The most patches to hide; BEiT and MaskDistill 75–78 of 196.
        ratio: The same as a share: floor(L · ratio).
        min_block: Smallest area of a block, patches.
        min_aspect: Smallest height over width.
        max_draws: Blocks tried for an image.

    Raises:
        ValueError: Not exactly one of ``num_hidden`` and ``ratio`` is given, or it hides nothing or everything; the other
            numbers make no block possible.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        num_hidden: int | None = None,
        ratio: float | None = None,
        min_block: int = 16,
        min_aspect: float = 0.3,
        max_draws: int = 64,
    ) -> None:
        super().__init__(student=student)
        if (ratio is None) == (num_hidden is None):
            raise ValueError(f'Give one of num_hidden and ratio, got num_hidden={num_hidden}, ratio={ratio}.')
        most = int(round(self.num_patches * ratio, 6)) if ratio is not None else num_hidden
        assert most is not None
        if not 1 <= most < self.num_patches:
            given = f'ratio={ratio}' if num_hidden is None else f'num_hidden={num_hidden}'
            raise ValueError(
                f'{given} hides {most} of {self.num_patches} patches; between 1 and {self.num_patches - 1} are possible. To '
                'hide nothing, use NoMasking.'
            )
        if not 1 <= min_block <= most:
            raise ValueError(f'min_block={min_block}: it must lie in [1, {most}], the most patches to hide.')
        if not 0 < min_aspect <= 1 or max_draws < 1:
            raise ValueError(f'min_aspect={min_aspect} must lie in (0, 1], max_draws={max_draws} be positive.')
        if not student.network.sees_all:
            raise ValueError(
                f'BlockMasking hides another number of patches in every image, but {type(student.network).__name__} computes '
                'the visible ones only. Use a MaskTokenViT, or RandomMasking.'
            )
        self.grid, self.most_hidden = student.grid, most
        self.num_visible = self.num_patches - most  # at least so many
        self.min_block, self.log_aspect, self.max_draws = min_block, math.log(min_aspect), max_draws

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw the blocks of all images."""
        batch, device = len(images_BCHW), images_BCHW.device
        hidden_BL = torch.zeros(batch, self.num_patches, dtype=torch.bool, device=device)
        failures_B = torch.zeros(batch, device=device)
        uniform_D4B = torch.rand(self.max_draws, 4, batch, device=device)
        for area_B, aspect_B, *place_2B in uniform_D4B.unbind():
            remaining_B = self.most_hidden - hidden_BL.sum(1)
            area_B = self.min_block + area_B * (remaining_B - self.min_block)
            aspect_B = ((2 * aspect_B - 1) * self.log_aspect).exp()
            block_BL, fits_B = propose_blocks(area_B, aspect_B, torch.stack(place_2B), self.grid)
            new_B = (block_BL & ~hidden_BL).sum(1)
            counts_B = fits_B & (new_B > 0) & (new_B <= remaining_B) & (failures_B < ATTEMPTS)
            failures_B = torch.where(counts_B, torch.zeros_like(failures_B), failures_B + 1)
            hidden_BL = hidden_BL | (block_BL & counts_B[:, None])
        return TokenMask(hidden_BL, most_hidden=self.most_hidden)
