"""Moving averages of the student that give more than one network's output: data2vec 2.0's targets and DINOv3's Gram anchor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.models.protocols import Progress, Student, StudentContext
from mkd_plugin.models.teachers.student_copy import MomentumTeacher, copy_weights, depth_of
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TapSpec, TapValue, TokenFeatures, TokenMask, Tokens

ANCHOR = 'anchor.'


@MODELS.register_module()
class AnchoredTeacher(MomentumTeacher):
    """:class:`MomentumTeacher` that also keeps an old copy of itself (the Gram teacher of DINOv3).

    Taps with the prefix ``anchor.``, such as ``anchor.output``, read the copy. The copy is the student at first.

    Args:
        momentum: As in :class:`MomentumTeacher`.
        every: Optimiser steps between two copies.
        times: Number of copies; afterwards the anchor stays as it is.

    Raises:
        ValueError: ``every`` or ``times`` is not positive.
    """

    anchor: Any

    def __init__(
        self, *, student: StudentContext, momentum: float | dict[str, Any], every: int = 10_000, times: int = 3
    ) -> None:
        super().__init__(student=student, momentum=momentum)
        if every < 1 or times < 1:
            raise ValueError(f'every={every}, times={times}: both must be at least 1.')
        self.every, self.times = every, times
        self.anchor = copy.deepcopy(self.network)

    def start_from(self, student: Student) -> None:
        """Copy the student's weights to both networks."""
        super().start_from(student)
        copy_weights(self.anchor, self.network)

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap of the average, or of the anchor."""
        return super().tap_spec(name.removeprefix(ANCHOR))

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run each network that is read on the intact images."""
        values: dict[str, TapValue] = {}
        for prefix, network in (('', self.network), (ANCHOR, self.anchor)):
            own = [name for name in taps if name.startswith(ANCHOR) == bool(prefix)]
            if own:
                found = network(images_BCHW, None, [name.removeprefix(prefix) for name in own])
                values.update({prefix + name: value for name, value in found.taps.items()})
        return TokenFeatures(values, self.network.num_prefix)

    def after_step(self, student: Student, progress: Progress) -> None:
        """Move the average, and copy it when it is time."""
        super().after_step(student, progress)
        if progress.step % self.every == 0 and 1 <= progress.step // self.every <= self.times:
            copy_weights(self.anchor, self.network)


@MODELS.register_module()
class LayerAverageTeacher(MomentumTeacher):
    """:class:`MomentumTeacher` with data2vec 2.0's targets at the tap ``target``.

    The outputs of the MLPs of the last blocks, before their residual addition, are standardised per image and channel over
    the patches, averaged, and standardised per token. The cls token of the target is the mean over its patches.

    Args:
        momentum: As in :class:`MomentumTeacher`.
        last: Number of blocks to average.

    Raises:
        ValueError: ``last`` exceeds the number of blocks.
    """

    def __init__(self, *, student: StudentContext, momentum: float | dict[str, Any], last: int) -> None:
        super().__init__(student=student, momentum=momentum)
        depth = depth_of(student.network)
        if not 1 <= last <= depth:
            raise ValueError(f'last={last}: it must lie in [1, {depth}], the number of blocks of the student.')
        self.blocks = range(depth - last, depth)

    def tap_spec(self, name: str) -> TapSpec:
        """Describe ``target``. Raises ValueError for other taps."""
        if name != 'target':
            raise ValueError(f"LayerAverageTeacher has only the tap 'target', got '{name}'.")
        return TapSpec('tokens', self.network.arch.width)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Compute the target of the intact images."""
        names = [f'{kind}:{i}' for i in self.blocks for kind in ('input', 'attention', 'block')]
        features = self.network(images_BCHW, None, names)
        total_BDL = torch.zeros((), device=images_BCHW.device)
        for i in self.blocks:
            before, attended, after = (features.tokens(f'{kind}:{i}') for kind in ('input', 'attention', 'block'))
            mlp_BND = after - (before + attended)  # what the MLP added
            patches_BDL = mlp_BND[:, features.num_prefix :].transpose(1, 2)
            total_BDL = total_BDL + F.instance_norm(patches_BDL, eps=1e-5)
        mean_BLD = (total_BDL / len(self.blocks)).transpose(1, 2)
        target_BLD = F.layer_norm(mean_BLD, mean_BLD.shape[-1:])
        target_BND = torch.cat([target_BLD.mean(dim=1, keepdim=True), target_BLD], dim=1)
        return TokenFeatures({'target': Tokens(target_BND)}, num_prefix=1)
