"""Any target generator of a host as a teacher (mmpretrain's HOG, CLIP, VQ-KD, dVAE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.teachers.base import Teacher, freeze
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import TapSpec, TokenFeatures, TokenMask, Tokens

__all__ = ['GeneratorTeacher']


@MODELS.register_module()
class GeneratorTeacher(Teacher):
    """Wraps ``generator(images)``. Its only tap is ``output``; there is no cls token.

    The generator is tried on one empty image when it is built, which tells its width and grid.

    Args:
        student: The student, for its grid and image size.
        generator: Config of a module that maps normalised images (B, C, H, W) to targets (B, L, D).

    Raises:
        ValueError: The generator does not give one vector for each of the student's patches.
    """

    def __init__(self, *, student: StudentContext, generator: dict[str, Any]) -> None:
        super().__init__(student=student)
        self.generator = build(generator)
        freeze(self.generator, in_checkpoints=False)
        self.train()
        network = student.network
        with torch.no_grad():
            trial = self.generator(torch.zeros(1, network.in_channels, network.img_size, network.img_size))
        if not isinstance(trial, Tensor) or trial.dim() != 3 or trial.shape[1] != student.num_patches:
            got = tuple(trial.shape) if isinstance(trial, Tensor) else type(trial).__name__
            raise ValueError(
                f'{type(self.generator).__name__} gives {got} for one image; (1, {student.num_patches}, width) is needed: '
                f'one vector for each of the {student.grid[0]} × {student.grid[1]} patches.'
            )
        self.width = trial.shape[2]

    def tap_spec(self, name: str) -> TapSpec:
        """``output``: the generator's width."""
        if name != 'output':
            raise ValueError(f"GeneratorTeacher has the tap 'output' only, got '{name}'.")
        return TapSpec('tokens', self.width, cls=False)

    def forward(self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str]) -> TokenFeatures:
        """Run the generator on the intact images."""
        return TokenFeatures({'output': Tokens(self.generator(images_BCHW))}, num_prefix=0)
