"""One step's teacher features: each teacher runs once, and only when something reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mkd_plugin.structures import Region, TokenFeatures, TokenMask

if TYPE_CHECKING:
    from mkd_plugin.models.teachers.base import Teacher


class Lessons:
    """What the teachers say about one batch.

    Args:
        teachers: Name → teacher.
        taps: Name → all taps that masking and objectives read.
        regions: Name → where the objectives read them, so that a teacher need not compute its last block elsewhere.
        images_BCHW: The student's normalised images.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        taps: Mapping[str, tuple[str, ...]],
        regions: Mapping[str, Region],
        images_BCHW: Tensor,
    ) -> None:
        self._teachers, self._taps, self._regions, self._images_BCHW = teachers, taps, regions, images_BCHW
        self._features: dict[str, TokenFeatures] = {}

    def features(self, teacher: str, mask: TokenMask | None) -> TokenFeatures:
        """The features of a teacher, computed at the first call.

        Args:
            teacher: Its name.
            mask: The student's mask; None while it is still being drawn, which needs the features of every token.
        """
        if teacher not in self._features:
            region = None if mask is None else self._regions[teacher].tokens(mask)
            # no_grad and not inference_mode: the loss saves targets and indices for its backward pass
            with torch.no_grad():
                self._features[teacher] = self._teachers[teacher](self._images_BCHW, mask, self._taps[teacher], region)
        return self._features[teacher]
