"""Frozen ViT teachers (including CLIP), and the conversion of the student's images to a teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.checkpoint.load import load_backbone
from mkd_plugin.checkpoint.releases import CLIP_PIXELS, IMAGENET_PIXELS
from mkd_plugin.models.protocols import StudentContext, Teacher, freeze
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS, check_options
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask

(IMAGENET_MEAN, IMAGENET_STD), (CLIP_MEAN, CLIP_STD) = IMAGENET_PIXELS, CLIP_PIXELS


class PixelView(nn.Module):
    """Renormalises the student's images with a teacher's statistics, and resizes them if the sizes differ.

    Args:
        student: The student, for its statistics.
        image_hw: Height and width of the teacher's input, pixels; None for the student's.
        pixel_mean: Mean per channel of the teacher's input, 0 … 255; None for the student's.
        pixel_std: Standard deviation likewise.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        student: StudentContext,
        *,
        image_hw: tuple[int, int] | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.image_hw = image_hw or student.network.image_hw
        student_mean, student_std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float32).double().view(-1, 1, 1)  # same rounding as the preprocessor
            for values in (
                student.pixel_mean,
                student.pixel_std,
                student.pixel_mean if pixel_mean is None else pixel_mean,
                student.pixel_std if pixel_std is None else pixel_std,
            )
        )
        channels = student.network.in_channels
        if {own_mean.numel(), own_std.numel()} != {channels} or (own_std <= 0).any():
            raise ValueError(
                f'pixel_mean={pixel_mean}, pixel_std={pixel_std}: give {channels} numbers each, std above 0.'
            )
        # student's normalised → stored pixel → teacher's normalised, folded into one scale and shift per channel
        scale, shift = student_std / own_std, (student_mean - own_mean) / own_std
        self.same_pixels = bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer('scale', scale.float(), persistent=False)
        self.register_buffer('shift', shift.float(), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Convert images; returns the same tensor if nothing differs."""
        if not self.same_pixels:
            images_BCHW = images_BCHW * self.scale + self.shift
        if images_BCHW.shape[-2:] != self.image_hw:
            images_BCHW = F.interpolate(images_BCHW, size=self.image_hw, mode='bicubic', antialias=True)
        return images_BCHW


@MODELS.register_module()
class ViTTeacher(Teacher):
    """Frozen ViT loaded from a file; not saved in checkpoints.

    The student's images are renormalised with the teacher's pixel statistics, and resized with antialiasing if the sizes
    differ, on the device.

    Args:
        student: The student, for its grid and pixel statistics.
        arch: Size, as for the student.
        patch_size: Side of a patch in the teacher's input, pixels.
        img_size: Side of the teacher's input, pixels; by default chosen so that the grids match (196 for a /14 teacher of
            a 224-px /16 student).
        network: Further options of :class:`~mkd_plugin.models.vit.VisionTransformer`, for example
            ``dict(position='none', relative_position='shared', layer_scale=0.1)`` for BEiT v2.
        checkpoint: File to load, strictly.
        prefix: Prefix of the network's keys in the file; inferred by default.
        seed: Seed for random weights, instead of ``checkpoint``.
        sees: Patches that the teacher computes: 'all', or the student's 'visible' ones (DMAE).
        pixel_mean: Mean per channel of the teacher's input, 0 … 255; ImageNet's by default.
        pixel_std: Standard deviation likewise.

    Raises:
        ValueError: Not exactly one of ``checkpoint`` and ``seed`` is given; the grids differ; the file does not cover the
            network; ``sees='visible'`` with images of another size, or with a relative position bias.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        arch: str | dict[str, Any] = 'b',
        patch_size: int = 16,
        img_size: int | None = None,
        network: Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
        prefix: str | None = None,
        seed: int | None = None,
        sees: str = 'all',
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(student=student)
        check_weights(checkpoint, seed)
        if sees not in ('all', 'visible'):
            raise ValueError(f"sees='{sees}': use 'all' or 'visible'.")
        self.sees_all = sees == 'all'
        rows, columns = student.grid
        sizes: dict[str, Any] = {
            'arch': arch,
            'patch_size': patch_size,
            'img_size': (rows * patch_size, columns * patch_size) if img_size is None else img_size,
            'in_channels': student.network.in_channels,
        }
        check_options(VisionTransformer, network or {}, sizes)
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            self.network = VisionTransformer(**sizes, **(network or {}))
        self._check_against(student)
        if checkpoint is not None:
            load_backbone(self.network, checkpoint, prefix=prefix)
        freeze(self.network, in_checkpoints=False)
        self.train()
        self.view = PixelView(student, image_hw=self.network.image_hw, pixel_mean=pixel_mean, pixel_std=pixel_std)

    def _check_against(self, student: StudentContext) -> None:
        network, grid = self.network, self.network.grid
        if grid != student.grid:
            raise ValueError(
                f'The teacher has a {grid[0]} × {grid[1]} grid (img_size={network.img_size}, '
                f'patch_size={network.patch_size}), the student {student.grid[0]} × {student.grid[1]}. '
                f"Set the teacher's img_size={student.grid[0] * network.patch_size}, or remove img_size."
            )
        if self.sees_all:
            return
        if network.image_hw != student.network.image_hw:
            raise ValueError(
                f"sees='visible': the teacher's img_size={network.image_hw[0]} differs from the student's "
                f'{student.network.image_hw[0]}, and resizing would mix hidden pixels into visible patches. Use a teacher '
                'with the same patch size.'
            )
        if network.relative_position is not None:
            raise ValueError("sees='visible': a relative position bias needs the full grid. Use sees='all'.")

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap of the network."""
        return self.network.tap_spec(name)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run the network on the intact images, or on the visible patches with ``sees='visible'``."""
        return self.network(self.view(images_BCHW), None if self.sees_all else mask, taps, region=region)


CLIP_NETWORK = dict(position='learned', activation='quick_gelu', norm_eps=1e-5, pre_norm=True)
PROJECTIONS = {'b': 512, 'l': 768}


@MODELS.register_module()
class CLIPTeacher(ViTTeacher):
    """:class:`ViTTeacher` with the defaults of OpenAI's CLIP: pixel statistics, ``ln_pre``, quick GELU, projection.

    The tap 'projected' is after ``ln_post`` and the projection, 'output' after ``ln_post``, 'block:-1' before both.
    Further options are those of :class:`ViTTeacher`.

    Args:
        arch: 'b' (use ``patch_size=16`` or 32), 'l' (``patch_size=14``), or a dict.
        network: Options that differ from OpenAI's, for example ``dict(activation='gelu')`` for most OpenCLIP models.
    """

    def __init__(
        self,
        *,
        arch: str | dict[str, Any] = 'b',
        network: Mapping[str, Any] | None = None,
        pixel_mean: Sequence[float] = CLIP_MEAN,
        pixel_std: Sequence[float] = CLIP_STD,
        **options: Any,
    ) -> None:
        projection = PROJECTIONS.get(arch) if isinstance(arch, str) else None
        clip = {**CLIP_NETWORK, 'projection': projection, **(network or {})}
        super().__init__(arch=arch, network=clip, pixel_mean=pixel_mean, pixel_std=pixel_std, **options)


def check_weights(checkpoint: str | None, seed: int | None) -> None:
    """Raise ValueError unless exactly one source of a teacher's weights is given."""
    if (checkpoint is None) == (seed is None):
        raise ValueError(
            "Set exactly one of the teacher's checkpoint and seed (random weights), got "
            f'checkpoint={checkpoint}, seed={seed}.'
        )
