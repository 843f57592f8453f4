"""Teacher features of one batch, each teacher run at most once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mkd_plugin.models.protocols import Teacher
from mkd_plugin.structures import Region, TokenFeatures, TokenMask


@dataclass(frozen=True)
class TeacherRequest:
    """Features of a teacher that are read in every step."""

    taps: tuple[str, ...]  #: Taps that the masking and the objectives read
    region: Region | None  #: Tokens that are read, so that the last block can skip the others; None for all


@dataclass
class FeatureCache:
    """Runs each teacher at most once per batch, on the student's normalised images, for what its request reads."""

    teachers: Mapping[str, Teacher]
    requests: Mapping[str, TeacherRequest]
    images_BCHW: Tensor
    _features: dict[str, TokenFeatures] = field(default_factory=dict)
    _per_mask: dict[str, TokenFeatures] = field(default_factory=dict)

    def before_mask(self, name: str) -> TokenFeatures:
        """Compute a teacher's features of all tokens, for the masking."""
        assert self.requests[name].region is None, 'the masking did not list this teacher in teacher_taps'
        return self._run(name, None)

    def features(self, name: str, mask: TokenMask) -> TokenFeatures:
        """Compute a teacher's features, one row per mask."""
        if name not in self._per_mask:
            features, several = self._run(name, mask), mask.per_image > 1 and self.teachers[name].sees_all
            self._per_mask[name] = features.repeat(mask.per_image) if several else features
        return self._per_mask[name]

    def _run(self, name: str, mask: TokenMask | None) -> TokenFeatures:
        if name not in self._features:
            teacher, request, images_BCHW = self.teachers[name], self.requests[name], self.images_BCHW
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
