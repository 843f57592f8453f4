"""Pixels as the teacher (MAE, SimMIM)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.teachers.base import Teacher
from mkd_plugin.models.vit import cut_patches
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens


@MODELS.register_module()
class PixelTeacher(Teacher):
    """The student's own normalised pixels, one vector a patch: (row, column, channel), channel fastest, as MAE orders them.

    Its only tap is ``output``. There is no cls token.
    """

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__(student=student)
        self.patch_size, self.in_channels = student.network.patch_size, student.network.in_channels

    def tap_spec(self, name: str) -> TapSpec:
        """``output``: patch² · channels values a patch."""
        if name != 'output':
            raise ValueError(f"PixelTeacher has the tap 'output' only, got '{name}'.")
        return TapSpec('tokens', self.patch_size**2 * self.in_channels, cls=False)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Cut the images into patches."""
        pixels_BLD = cut_patches(images_BCHW, self.patch_size).movedim(2, 4).flatten(2)
        return TokenFeatures({'output': Tokens(pixels_BLD)}, num_prefix=0)
