"""One step's teacher features: each teacher runs once, and only when something reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mkd_plugin.structures import TokenFeatures, TokenMask

if TYPE_CHECKING:
    from mkd_plugin.models.teachers.base import Teacher

__all__ = ['Lessons']


class Lessons:
    """What the teachers say about one batch.

    Args:
        teachers: Name → teacher.
        taps: Name → all taps that masking and objectives read.
        images_BCHW: The student's normalised images.
    """

    def __init__(
        self, teachers: Mapping[str, Teacher], taps: Mapping[str, tuple[str, ...]], images_BCHW: Tensor
    ) -> None:
        self._teachers, self._taps, self._images_BCHW = teachers, taps, images_BCHW
        self._features: dict[str, TokenFeatures] = {}

    def features(self, teacher: str, mask: TokenMask | None) -> TokenFeatures:
        """The features of a teacher, computed at the first call.

        Args:
            teacher: Its name.
            mask: The student's mask; None while it is still being drawn. Only a teacher that sees no more than the
                student looks at it.
        """
        if teacher not in self._features:
            # no_grad and not inference_mode: the loss saves targets and indices for its backward pass
            with torch.no_grad():
                self._features[teacher] = self._teachers[teacher](self._images_BCHW, mask, self._taps[teacher])
        return self._features[teacher]
