"""BEiT's block-wise masking, drawn on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mkd_plugin.models.protocols import Masking, StudentContext, TeacherFeatures
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask

ATTEMPTS = 10  # BEiT stops after this many rejected blocks in a row
DRAWS = 64  # blocks proposed per image


def propose_blocks(area_B: Tensor, aspect_B: Tensor, place_2B: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Propose one rectangle per image: (B, L), True inside, and whether it is smaller than the grid along both axes, (B,).

    ``area_B`` is in patches, ``aspect_B`` height divided by width; ``place_2B``, row and column, is uniform in [0, 1).
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
    """Hides rectangular blocks of *at most* ``num_hidden`` patches in total, so the number varies between images.

    Follows BEiT's generator: a block's area is uniform between ``min_block`` and the number of patches still to hide, its
    aspect ratio log-uniform in (min_aspect, 1 / min_aspect). A block is accepted if it hides a new patch and does not
    exceed the limit; ten rejections in a row end an image. Unlike BEiT's, all images of a batch are drawn in parallel,
    without synchronisation, and at most 64 blocks are proposed per image (more would change one image in thousands).

    Args:
        num_hidden: Maximum number of hidden patches; BEiT and MaskDistill use 75–78 of 196.
        ratio: Maximum share of hidden patches, instead of ``num_hidden``: floor(L · ratio).
        min_block: Minimum area of a block, patches.
        min_aspect: Minimum aspect ratio (height divided by width).

    Raises:
        ValueError: Not exactly one of ``num_hidden`` and ``ratio`` is given, a value is out of range, or the student
            computes visible patches only.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        num_hidden: int | None = None,
        ratio: float | None = None,
        min_block: int = 16,
        min_aspect: float = 0.3,
    ) -> None:
        super().__init__(student=student)
        if (ratio is None) == (num_hidden is None):
            raise ValueError(f'Set exactly one of num_hidden and ratio, got num_hidden={num_hidden}, ratio={ratio}.')
        most = int(round(self.num_patches * ratio, 6)) if ratio is not None else num_hidden
        assert most is not None
        if not 1 <= most < self.num_patches:
            given = f'ratio={ratio}' if num_hidden is None else f'num_hidden={num_hidden}'
            raise ValueError(
                f'{given} hides {most} of {self.num_patches} patches; the number must lie in [1, {self.num_patches - 1}]. '
                'To hide nothing, use NoMasking.'
            )
        if not 1 <= min_block <= most:
            raise ValueError(
                f'min_block={min_block}: it must lie in [1, {most}], the maximum number of hidden patches.'
            )
        if not 0 < min_aspect <= 1:
            raise ValueError(f'min_aspect={min_aspect} must lie in (0, 1].')
        if not student.network.sees_all:
            raise ValueError(
                f'BlockMasking hides a different number of patches in each image, but {type(student.network).__name__} '
                'needs the same number of visible patches in every image. Use a MaskTokenViT, or RandomMasking.'
            )
        self.grid, self.most_hidden = student.grid, most
        self.num_visible = self.num_patches - most  # the minimum
        self.min_block, self.log_aspect = min_block, math.log(min_aspect)

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw the blocks of all images."""
        batch, device = len(images_BCHW), images_BCHW.device
        hidden_BL = torch.zeros(batch, self.num_patches, dtype=torch.bool, device=device)
        failures_B = torch.zeros(batch, device=device)
        uniform_D4B = torch.rand(DRAWS, 4, batch, device=device)
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
