"""Any model of timm as the teacher (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.checkpoint.load import load_module
from mkd_plugin.models.protocols import StudentContext, Teacher, freeze
from mkd_plugin.models.teachers.vit import PixelView
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens

RESAMPLE = ('bilinear', 'bicubic', 'nearest')


@MODELS.register_module()
class TimmTeacher(Teacher):
    """A frozen timm model that offers ``forward_intermediates``: Swin, ConvNeXt, ResNet, and its ViTs.

    Taps: ``block:i`` (timm's i-th intermediate: a block of a ViT, a stage of a pyramid), and ``output`` (timm's final
    features, after its norm). It stops computing after the last tap. Feature maps of another grid are resampled to the
    student's if ``resample`` says how. There is no cls token; for cls, relations or attention of a plain ViT use
    :class:`ViTTeacher`, which loads timm's files as well.

    Args:
        student: The student, for its grid, image size and pixel statistics.
        model: timm's name, for example 'resnet50', 'swin_base_patch4_window7_224'.
        checkpoint: Local file with the model's weights; the classifier in it is dropped.
        seed: Draw random weights with this seed instead of loading a file.
        img_size: Side of the teacher's input, pixels; the student's by default.
        resample: 'bilinear', 'bicubic' (both antialiased) or 'nearest', for taps whose grid differs from the student's.
        options: Further arguments of ``timm.create_model``.
        pixel_mean: Per channel, 0 … 255; what timm's pretrained config says by default.
        pixel_std: Likewise.

    Raises:
        ValueError: timm has no such model, or it offers no intermediates; not exactly one of ``checkpoint`` and ``seed``;
            the file does not cover the model; a tap's grid differs and ``resample`` is not given.
    """

    def __init__(
        self,
        *,
        student: StudentContext,
        model: str,
        checkpoint: str | None = None,
        seed: int | None = None,
        img_size: int | None = None,
        resample: str | None = None,
        options: Mapping[str, Any] | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(student=student)
        if (checkpoint is None) == (seed is None):
            raise ValueError(
                f'Give a teacher either checkpoint=… or seed=… (random weights), got checkpoint={checkpoint}, seed={seed}.'
            )
        if resample not in (None, *RESAMPLE):
            raise ValueError(f"resample='{resample}': use one of {list(RESAMPLE)}, or None if the grids are equal.")
        self.model_name, self.resample, self.grid = model, resample, student.grid
        image_hw = student.network.image_hw if img_size is None else (img_size, img_size)
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            self.network = create(model, {'in_chans': student.network.in_channels, **(options or {})}, image_hw)
        if checkpoint is not None:
            adapt = getattr(sys.modules[type(self.network).__module__], 'checkpoint_filter_fn', None)
            load_module(self.network, checkpoint, adapt=adapt)  # timm's own filter renames and resizes
        freeze(self.network, in_checkpoints=False)
        self.train()
        cfg = self.network.pretrained_cfg
        self.view = PixelView(
            student,
            image_hw=image_hw,
            pixel_mean=[255 * value for value in cfg['mean']] if pixel_mean is None else pixel_mean,
            pixel_std=[255 * value for value in cfg['std']] if pixel_std is None else pixel_std,
        )
        self.num_intermediates = len(self.network.feature_info)
        self.trial = torch.zeros(1, student.network.in_channels, *student.network.image_hw)
        self.stops_early = 'stop_early' in inspect.signature(self.network.forward_intermediates).parameters

    def tap_spec(self, name: str) -> TapSpec:
        """The width of an intermediate; tried on an empty image.

        Raises:
            ValueError: There is no such tap, or its grid differs from the student's and ``resample`` is not given.
        """
        self._index(name)
        with torch.no_grad():
            found_BDhw = self._maps(self.view(self.trial), (name,))[name]
        if tuple(found_BDhw.shape[-2:]) != self.grid and self.resample is None:
            height, width = found_BDhw.shape[-2:]
            raise ValueError(
                f"'{name}' of {self.model_name} has a {height} × {width} grid, the student {self.grid[0]} × {self.grid[1]}. "
                f'Give the teacher resample=…, one of {list(RESAMPLE)}, or another img_size.'
            )
        return TapSpec('tokens', found_BDhw.shape[1], cls=False)

    def _index(self, name: str) -> int:
        """Which intermediate a tap is; the number of intermediates for 'output'."""
        count = self.num_intermediates
        if name == 'output':
            return count
        found = re.fullmatch(r'block:(-?[0-9]+)', name)
        if found is None or not -count <= int(found[1]) < count:
            raise ValueError(
                f"{self.model_name} through TimmTeacher has the taps 'output' and 'block:i' with i in [−{count}, {count}), "
                f"got '{name}'. Relations and attention can be read from a plain ViT loaded by ViTTeacher."
            )
        return int(found[1]) % count

    def _maps(self, images_BCHW: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Feature maps (B, D, h, w) of the taps, no further computed than they need."""
        indices = {name: self._index(name) for name in taps}
        blocks = sorted({index for index in indices.values() if index < self.num_intermediates})
        whole = 'output' in taps
        early = {'stop_early': True} if self.stops_early and not whole else {}
        wanted = blocks or [self.num_intermediates - 1]
        result = self.network.forward_intermediates(images_BCHW, wanted, intermediates_only=not whole, **early)
        final, maps = result if whole else (None, result)
        found = {name: maps[wanted.index(index)] for name, index in indices.items() if name != 'output'}
        return found if final is None else {**found, 'output': self._as_map(final)}

    def _as_map(self, final: Tensor) -> Tensor:
        """timm's final features (tokens, channels last or channels first) as (B, D, h, w)."""
        if final.dim() == 3:
            patches_BLD = final[:, getattr(self.network, 'num_prefix_tokens', 0) :]
            return patches_BLD.transpose(1, 2).reshape(len(final), -1, *self.network.patch_embed.grid_size)
        return final.permute(0, 3, 1, 2) if getattr(self.network, 'output_fmt', 'NCHW') == 'NHWC' else final

    def _to_grid(self, map_BDhw: Tensor) -> Tensor:
        """A feature map as the student's patches, (B, L, D)."""
        if tuple(map_BDhw.shape[-2:]) != self.grid:
            assert self.resample is not None
            smooth = {} if self.resample == 'nearest' else {'antialias': True}
            map_BDhw = F.interpolate(map_BDhw, size=self.grid, mode=self.resample, **smooth)
        return map_BDhw.flatten(2).transpose(1, 2)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run the model on the intact images."""
        maps = self._maps(self.view(images_BCHW), taps)
        return TokenFeatures({name: Tokens(self._to_grid(maps[name])) for name in taps}, num_prefix=0)


def create(name: str, options: dict[str, Any], image_hw: tuple[int, int]) -> Any:
    """A timm model without its classifier, for images of this size.

    Raises:
        ValueError: There is no such model, it does not take the options, or it offers no intermediates.
    """
    if not timm.is_model(name):
        near = timm.list_models(f'*{name.split("_")[0]}*')[:5]
        raise ValueError(f"timm {timm.__version__} has no model '{name}'. Did you mean one of {near}?")
    try:
        network: Any = timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        raise ValueError(f'timm.create_model({name!r}) does not take {options}: {error}') from error
    if not hasattr(network, 'forward_intermediates'):
        raise ValueError(
            f"timm's {name} offers no forward_intermediates; take another model, or write a Teacher of your own."
        )
    if hasattr(network, 'set_input_size'):
        network.set_input_size(img_size=image_hw)
    return network
