"""Teachers that give fixed targets: pixels (MAE, SimMIM) and mmpretrain's target generators (HOG, VQ-KD, dVAE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mkd_plugin.checkpoint.load import load_module
from mkd_plugin.models.protocols import StudentContext, Teacher, freeze
from mkd_plugin.models.teachers.vit import PixelView
from mkd_plugin.models.vit import cut_patches
from mkd_plugin.registry import MODELS, build
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens


@MODELS.register_module()
class PixelTeacher(Teacher):
    """The student's normalised pixels, one vector per patch in MAE's order: (row, column, channel), channel fastest.

    The only tap is ``output``. There is no cls token.
    """

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__(student=student)
        self.patch_size, self.in_channels = student.network.patch_size, student.network.in_channels

    def tap_spec(self, name: str) -> TapSpec:
        """Describe ``output``: patch² · channels values per patch."""
        if name != 'output':
            raise ValueError(f"{type(self).__name__} has only the tap 'output', got '{name}'.")
        return TapSpec('tokens', self.patch_size**2 * self.in_channels, cls=False)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Cut the images into patches."""
        return TokenFeatures({'output': Tokens(self._cut(images_BCHW))}, num_prefix=0)

    def _cut(self, images_BCHW: Tensor) -> Tensor:
        return cut_patches(images_BCHW, self.patch_size).movedim(2, 4).flatten(2)


@MODELS.register_module()
class SpectrumTeacher(PixelTeacher):
    """Fourier spectrum of the student's normalised images, cut like an image: one vector per patch of frequencies (Ge2-AE).

    The transform of each channel is unitary, with frequency 0 in the middle. A vector has the real parts in the order of
    :class:`PixelTeacher`, then the imaginary parts. Every frequency depends on all pixels, so use ``region='all'``.
    """

    def tap_spec(self, name: str) -> TapSpec:
        """Describe ``output``: 2 · patch² · channels values per patch."""
        spec = super().tap_spec(name)
        return replace(spec, channels=2 * spec.channels)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Transform the images."""
        spectrum = torch.fft.fftshift(torch.fft.fft2(images_BCHW, norm='ortho'), dim=(-2, -1))
        real, imaginary = (self._cut(part) for part in (spectrum.real, spectrum.imag))
        return TokenFeatures({'output': Tokens(torch.cat([real, imaginary], dim=2))}, num_prefix=0)


def as_tokens(output: Any) -> Tensor:
    """Convert the output of a target generator to tokens (B, N, D); class indices become (B, N, 1) integers.

    ==================================  =============================
    features (B, N, D)                  HOG
    (features (B, N, D), attention)     CLIP
    class indices (B, N)                VQ-KD
    class scores (B, classes, h, w)     dVAE; the argmax is taken
    ==================================  =============================

    Raises:
        ValueError: The output has another form.
    """
    tokens = output[0] if isinstance(output, (tuple, list)) else output
    if isinstance(tokens, Tensor) and tokens.dim() == 4:
        tokens = tokens.argmax(dim=1).flatten(1)
    if isinstance(tokens, Tensor) and tokens.dim() == 2:
        tokens = tokens.unsqueeze(-1)
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f'The target generator returned {got}; expected (B, N, D), (B, N) or (B, classes, h, w).')
    return tokens


@MODELS.register_module()
class GeneratorTeacher(Teacher):
    """Wraps a target generator, called as ``generator(images)``. The only tap is ``output``.

    A trial run on an empty image at construction finds the generator's width and grid, and whether it gives cls.

    Args:
        generator: Config of a module that maps normalised images (B, C, H, W) to an output of :func:`as_tokens`.
        num_classes: Number of classes, if the generator gives class indices.
        img_size: Side of the generator's input, pixels; the student's by default.
        pixel_mean: Mean per channel of the generator's input, 0 … 255; the student's by default.
        pixel_std: Standard deviation likewise.

    Raises:
        ValueError: The generator does not give one target per patch of the student; ``num_classes`` is missing for class
            indices, or given for features; the generator's checkpoint does not cover it.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        generator: dict[str, Any],
        num_classes: int | None = None,
        img_size: int | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(student=student)
        self.generator = build(generator)
        start = generator.get('init_cfg')
        if start is not None and start['type'] == 'Pretrained':  # mmengine's own loading only logs missing keys
            load_module(self.generator, start['checkpoint'], prefix=start.get('prefix', ''))
        elif isinstance(self.generator, BaseModule):
            self.generator.init_weights()
        freeze(self.generator, in_checkpoints=False)
        self.train()
        image_hw = None if img_size is None else (img_size, img_size)
        self.view = PixelView(student, image_hw=image_hw, pixel_mean=pixel_mean, pixel_std=pixel_std)
        name, (height, width) = type(self.generator).__name__, student.network.image_hw
        try:
            with torch.no_grad():
                trial = as_tokens(self.generator(self.view(torch.zeros(1, student.network.in_channels, height, width))))
        except RuntimeError as error:
            size = self.view.image_hw
            raise ValueError(f'{name} cannot compute images of {size} px: {error}. Set img_size.') from error
        self.num_prefix = trial.shape[1] - student.num_patches
        if self.num_prefix not in (0, 1):
            raise ValueError(
                f'{name} gives {trial.shape[1]} targets for one image of {height} × {width} px; the student has '
                f'{student.grid[0]} × {student.grid[1]} = {student.num_patches} patches (with or without cls). '
                'Choose img_size so that the grids match.'
            )
        if (num_classes is not None) == trial.is_floating_point():
            raise ValueError(f'{name} gives {trial.dtype}: set num_classes for class indices only, got {num_classes}.')
        self.classes = num_classes is not None
        self.channels = trial.shape[2] if num_classes is None else num_classes

    def tap_spec(self, name: str) -> TapSpec:
        """Describe ``output``: the generator's width, or its number of classes."""
        if name != 'output':
            raise ValueError(f"GeneratorTeacher has only the tap 'output', got '{name}'.")
        return TapSpec('tokens', self.channels, cls=self.num_prefix == 1, classes=self.classes)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run the generator on the intact images."""
        return TokenFeatures({'output': Tokens(as_tokens(self.generator(self.view(images_BCHW))))}, self.num_prefix)
