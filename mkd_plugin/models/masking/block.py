"""BEiT's block-wise masking."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_plugin.models.protocols import Masking, StudentContext, TeacherFeatures
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask
from mkd_plugin.utils.draws import draw_uniform, to_device

ATTEMPTS = 10  # BEiT stops after this many rejected blocks in a row
DRAWS = 64  # blocks proposed per image


@torch.compiler.disable  # type: ignore[untyped-decorator]
def draw_blocks(
    uniform_D4B: Tensor, grid: tuple[int, int], *, most: int, min_block: int, min_aspect: float
) -> NDArray[np.bool_]:
    """Draw the hidden patches of B images, (B, rows, columns), from D × 4 numbers per image that are uniform in [0, 1).

    Runs on the host: a rejected block changes the next, so that a GPU would launch 52 kernels per proposed block.
    """
    rows, columns = grid
    aspect_DB = ((2 * uniform_D4B[:, 1] - 1) * math.log(min_aspect)).exp().numpy()
    hidden_BRC = np.zeros((uniform_D4B.shape[2], rows, columns), bool)
    remaining_B: NDArray[np.float32] = np.full(len(hidden_BRC), most, np.float32)
    failures_B: NDArray[np.int_] = np.zeros(len(hidden_BRC), int)
    row_R, column_C = np.arange(rows), np.arange(columns)
    for (area_B, _, top_B, left_B), aspect_B in zip(uniform_D4B.numpy(), aspect_DB, strict=True):
        area_B = min_block + area_B * (remaining_B - min_block)
        height_B, width_B = np.sqrt(area_B * aspect_B).round(), np.sqrt(area_B / aspect_B).round()
        top_B1 = np.floor(top_B * (rows - height_B + 1))[:, None]
        left_B1 = np.floor(left_B * (columns - width_B + 1))[:, None]
        in_rows_BR = (row_R >= top_B1) & (row_R < top_B1 + height_B[:, None])
        in_columns_BC = (column_C >= left_B1) & (column_C < left_B1 + width_B[:, None])
        new_BRC = in_rows_BR[:, :, None] & in_columns_BC[:, None, :] & ~hidden_BRC
        new_B = new_BRC.sum((1, 2), dtype=np.float32)
        counts_B = (height_B < rows) & (width_B < columns) & (new_B > 0) & (new_B <= remaining_B)
        counts_B &= failures_B < ATTEMPTS
        hidden_BRC |= new_BRC & counts_B[:, None, None]
        remaining_B -= np.where(counts_B, new_B, 0)
        failures_B = np.where(counts_B, 0, failures_B + 1)
        if (failures_B >= ATTEMPTS).all():
            break
    return hidden_BRC


def check_blocks(min_block: int, min_aspect: float, most: int) -> None:
    """Raise ValueError for blocks that cannot be drawn where at most ``most`` patches are hidden."""
    if not 1 <= min_block <= most:
        raise ValueError(f'min_block={min_block}: it must lie in [1, {most}], the number of hidden patches.')
    if not 0 < min_aspect <= 1:
        raise ValueError(f'min_aspect={min_aspect} must lie in (0, 1].')


@MODELS.register_module()
class BlockMasking(Masking):
    """Hides rectangular blocks of *at most* ``num_hidden`` patches in total, so the number varies between images.

    Follows BEiT's generator: a block's area is uniform between ``min_block`` and the number of patches still to hide, its
    aspect ratio log-uniform in (min_aspect, 1 / min_aspect). A block is accepted if it hides a new patch and does not
    exceed the limit; ten rejections in a row end an image. Unlike BEiT's, all images of a batch are drawn in parallel, on
    the host, and at most 64 blocks are proposed per image (more would change one image in thousands).

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
        check_blocks(min_block, min_aspect, most)
        if not student.network.sees_all:
            raise ValueError(
                f'BlockMasking hides a different number of patches in each image, but {type(student.network).__name__} '
                'needs the same number of visible patches in every image. Use a MaskTokenViT, or RandomMasking.'
            )
        self.grid, self.most_hidden = student.grid, most
        self.num_visible = self.num_patches - most  # the minimum
        self.min_block, self.min_aspect = min_block, min_aspect

    def forward(self, images_BCHW: Tensor, teacher_features: TeacherFeatures) -> TokenMask:
        """Draw the blocks of all images."""
        uniform_D4B = draw_uniform('mask', (DRAWS, 4, len(images_BCHW)), 2, torch.device('cpu'))
        hidden_BRC = draw_blocks(
            uniform_D4B, self.grid, most=self.most_hidden, min_block=self.min_block, min_aspect=self.min_aspect
        )
        hidden_BL = to_device(torch.from_numpy(hidden_BRC).flatten(1), images_BCHW.device)
        return TokenMask(hidden_BL, most_hidden=self.most_hidden)
