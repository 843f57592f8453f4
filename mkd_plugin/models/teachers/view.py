"""The student's images as a teacher wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.models.context import StudentContext


class PixelView(nn.Module):
    """Renormalises the student's batch with a teacher's statistics, and resizes it where the sizes differ.

    Args:
        student: The student, for its statistics.
        image_hw: Height and width of the teacher's input, pixels; None for the student's.
        pixel_mean: The teacher's, per channel, 0 … 255; None for the student's.
        pixel_std: Likewise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        student: StudentContext,
        *,
        image_hw: tuple[int, int] | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.image_hw = image_hw or student.network.image_hw
        student_mean, student_std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float32).double().view(-1, 1, 1)  # as the preprocessor keeps them
            for values in (
                student.pixel_mean,
                student.pixel_std,
                student.pixel_mean if pixel_mean is None else pixel_mean,
                student.pixel_std if pixel_std is None else pixel_std,
            )
        )
        # student's normalised → stored pixel → teacher's normalised, folded into one scale and shift per channel
        scale, shift = student_std / own_std, (student_mean - own_mean) / own_std
        self.same_pixels = bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer('scale', scale.float(), persistent=False)
        self.register_buffer('shift', shift.float(), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The teacher's view; the very same tensor if nothing differs."""
        if not self.same_pixels:
            images_BCHW = images_BCHW * self.scale + self.shift
        if images_BCHW.shape[-2:] != self.image_hw:
            images_BCHW = F.interpolate(images_BCHW, size=self.image_hw, mode='bicubic', antialias=True)
        return images_BCHW
