"""A teacher that follows the student as a moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.teachers.base import StudentCopy
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TokenFeatures, TokenMask


@MODELS.register_module()
class MomentumTeacher(StudentCopy):
    """teacher ← m · teacher + (1 − m) · student after every optimiser step (dBOT, Table 5; the step is inferred).

    ``MomentumHook`` calls :meth:`follow`.

    Args:
        student: The student, whose first weights the teacher copies.
        momentum: m at the start.
        end_momentum: m at the end, reached along a half cosine; None keeps m constant.

    Raises:
        ValueError: A momentum outside [0, 1].
    """

    def __init__(self, *, student: StudentContext, momentum: float, end_momentum: float | None = None) -> None:
        super().__init__(student=student)
        end = momentum if end_momentum is None else end_momentum
        if not (0 <= momentum <= 1 and 0 <= end <= 1):
            raise ValueError(f'momentum={momentum}, end_momentum={end_momentum}: both must lie in [0, 1].')
        self.momentum, self.end_momentum = momentum, end

    @torch.no_grad()
    def follow(self, student: VisionTransformer, progress: float) -> None:
        """Move towards the student; ``progress`` is the share of the run that is done, 0 … 1."""
        rise = (1 - math.cos(math.pi * progress)) / 2
        momentum = self.momentum + (self.end_momentum - self.momentum) * rise
        own = dict(self.network.named_buffers())
        names, weights = zip(*student.named_parameters(), strict=True)
        torch._foreach_lerp_([own[name] for name in names], weights, 1 - momentum)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run the average on the intact images."""
        return self.network(images_BCHW, None, taps, region=region)
