"""Teacher features of one batch, each teacher run at most once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_plugin.models.protocols import Teacher
from mkd_plugin.structures import Region, TokenFeatures, TokenMask


@dataclass(frozen=True)
class TeacherRequest:
    """What is read of a teacher in every step, known when the model is built.

    Attributes:
        taps: All taps that masking and objectives read.
        region: Where objectives read them, so that the last block can skip other tokens; None for every token.
    """

    taps: tuple[str, ...]
    region: Region | None


class FeatureCache:
    """Runs each teacher at most once per batch. What a teacher computes depends on its request, not on who asks first.

    Args:
        teachers: Name → teacher.
        requests: Name → what is read of it.
        images_BCHW: The student's normalised images.
    """

    def __init__(
        self, teachers: Mapping[str, Teacher], requests: Mapping[str, TeacherRequest], images_BCHW: Tensor
    ) -> None:
        self._teachers, self._requests, self._images_BCHW = teachers, requests, images_BCHW
        self._features: dict[str, TokenFeatures] = {}
        self._per_mask: dict[str, TokenFeatures] = {}

    def before_mask(self, name: str) -> TokenFeatures:
        """Compute a teacher's features of every token, for a masking that reads them."""
        assert self._requests[name].region is None, 'the masking did not declare that it reads this teacher'
        return self._run(name, None)

    def features(self, name: str, mask: TokenMask) -> TokenFeatures:
        """Compute a teacher's features, one row per mask."""
        if name not in self._per_mask:
            features, several = self._run(name, mask), mask.per_image > 1 and self._teachers[name].sees_all
            self._per_mask[name] = features.repeat(mask.per_image) if several else features
        return self._per_mask[name]

    def _run(self, name: str, mask: TokenMask | None) -> TokenFeatures:
        if name not in self._features:
            teacher, request, images_BCHW = self._teachers[name], self._requests[name], self._images_BCHW
            region = request.region.tokens(mask) if request.region is not None and mask is not None else None
            if mask is not None and mask.per_image > 1:
                if teacher.sees_all:  # one pass serves all masks of an image, whose regions differ
                    region = None
                else:
                    images_BCHW = mask.repeat(images_BCHW)
            # no_grad rather than inference_mode: the loss saves targets and indices for its backward pass
            with torch.no_grad():
                self._features[name] = teacher(images_BCHW, mask, request.taps, region)
        return self._features[name]
