"""The protocol of a masking."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.lessons import Lessons
from mkd_plugin.structures import TokenMask


class Masking(nn.Module):
    """Draws the mask of a batch.

    Args:
        student: The student, for its grid.

    Attributes:
        num_visible: V, the same for every image of every batch.
    """

    num_visible: int

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__()
        self.num_patches = student.num_patches

    def teacher_taps(self) -> Mapping[str, tuple[str, ...]]:
        """Teacher → taps that must be known before the mask can be drawn; nothing by default."""
        return {}

    def forward(self, images_BCHW: Tensor, lessons: Lessons) -> TokenMask:
        """Draw the masks of these images; ``lessons`` gives the teachers' features."""
        raise NotImplementedError
