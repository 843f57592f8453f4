"""A pre-trained (or seeded random) plain ViT as the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mkd_plugin.checkpoint.load import load_backbone
from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.students.visible import VisibleViT
from mkd_plugin.models.teachers.base import Teacher, freeze
from mkd_plugin.models.teachers.view import PixelView
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask

__all__ = ['ViTTeacher']

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@MODELS.register_module()
class ViTTeacher(Teacher):
    """A frozen ViT from a file, which is not saved into our checkpoints.

    It owns its pixel statistics and input size: the student's batch is renormalised, and resized with antialiasing where
    the sizes differ, on the device.

    Args:
        student: The student, for its grid and pixel statistics.
        arch: Size, as the student's.
        patch_size: Side of a patch in the teacher's input, pixels.
        img_size: Side of the teacher's input, pixels; by default that of the student scaled so that both grids match
            (a /14 teacher of a 224-px /16 student gets 196 px).
        checkpoint: File to load, strictly.
        prefix: The network's prefix in the file, if it is not found by itself.
        seed: Draw random weights with this seed instead of loading a file.
        sees: 'all' patches, or only the 'visible' ones of the student (DMAE).
        pixel_mean: Per channel, 0 … 255; ImageNet's by default.
        pixel_std: Likewise.

    Raises:
        ValueError: Not exactly one of ``checkpoint`` and ``seed`` is given; the grids differ; the file does not cover the
            network; ``sees='visible'`` with images of another size.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        arch: str | dict[str, Any] = 'b',
        patch_size: int = 16,
        img_size: int | None = None,
        checkpoint: str | None = None,
        prefix: str | None = None,
        seed: int | None = None,
        sees: str = 'all',
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(student=student)
        if (checkpoint is None) == (seed is None):
            raise ValueError(
                f'Give a teacher either checkpoint=… or seed=… (random weights), got checkpoint={checkpoint}, seed={seed}.'
            )
        if sees not in ('all', 'visible'):
            raise ValueError(f"sees='{sees}': use 'all' or 'visible'.")
        self.sees_all = sees == 'all'
        self.img_size = img_size or student.grid[0] * patch_size
        self.network = self._build(arch, patch_size, student.network.in_channels, checkpoint, prefix, seed)
        grid = self.network.grid
        if grid != student.grid:
            raise ValueError(
                f'The teacher has a {grid[0]} × {grid[1]} grid (img_size={self.img_size}, '
                f'patch_size={patch_size}), the student {student.grid[0]} × {student.grid[1]}. '
                f'Give the teacher img_size={student.grid[0] * patch_size}, or leave img_size out.'
            )
        if sees == 'visible' and self.img_size != student.network.img_size:
            raise ValueError(
                f"sees='visible': the teacher's img_size={self.img_size} differs from the student's "
                f'{student.network.img_size}, and resizing would mix hidden pixels into visible patches. Use a teacher of '
                'the same patch size.'
            )
        freeze(self.network, in_checkpoints=False)
        self.train()
        self.view = PixelView(student, img_size=self.img_size, pixel_mean=pixel_mean, pixel_std=pixel_std)

    def _build(
        self,
        arch: str | dict[str, Any],
        patch_size: int,
        in_channels: int,
        checkpoint: str | None,
        prefix: str | None,
        seed: int | None,
    ) -> VisibleViT:
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            network = VisibleViT(arch=arch, img_size=self.img_size, patch_size=patch_size, in_channels=in_channels)
        if checkpoint is not None:
            load_backbone(network, checkpoint, prefix=prefix)
        return network

    def tap_spec(self, name: str) -> TapSpec:
        """As the network's."""
        return self.network.tap_spec(name)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run the network up to the highest tap, its last block for the region only."""
        return self.network(self.view(images_BCHW), None if self.sees_all else mask, taps, region=region)
