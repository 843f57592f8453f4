"""timm models as teachers (shape legend: ``mkd_plugin/structures.py``)."""

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
from mkd_plugin.models.teachers.vit import PixelView, check_weights
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens

RESAMPLE = ('bilinear', 'bicubic', 'nearest')


@MODELS.register_module()
class TimmTeacher(Teacher):
    """Frozen timm model with ``forward_intermediates``, such as Swin, ConvNeXt, ResNet and timm's ViTs.

    Taps: ``block:i`` (timm's i-th intermediate: a block of a ViT or a stage of a pyramid) and ``output`` (timm's final
    features, after its norm). There is no cls token; for cls, relations or attention of a plain ViT use
    :class:`ViTTeacher`, which loads timm's files too.

    Args:
        model: Name in timm, for example 'resnet50' or 'swin_base_patch4_window7_224'.
        checkpoint: Local file with the model's weights; a classifier in it is dropped.
        seed: Seed for random weights, instead of ``checkpoint``.
        img_size: Side of the teacher's input, pixels; the student's by default.
        resample: How to resample taps to the student's grid if it differs: 'bilinear', 'bicubic' (both antialiased) or
            'nearest'.
        options: Further arguments of ``timm.create_model``.
        pixel_mean: Mean per channel of the teacher's input, 0 … 255; from timm's pretrained config by default.
        pixel_std: Standard deviation likewise.

    Raises:
        ValueError: timm has no such model, or it has no intermediates; not exactly one of ``checkpoint`` and ``seed`` is
            given; the file does not cover the model; a tap's grid differs and ``resample`` is not given.
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
        check_weights(checkpoint, seed)
        if resample not in (None, *RESAMPLE):
            raise ValueError(f"resample='{resample}': use one of {list(RESAMPLE)}, or None if the grids match.")
        self.model_name, self.resample, self.grid = model, resample, student.grid
        image_hw = student.network.image_hw if img_size is None else (img_size, img_size)
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            self.network = create(model, {'in_chans': student.network.in_channels, **(options or {})}, image_hw)
        if checkpoint is not None:
            adapt = getattr(sys.modules[type(self.network).__module__], 'checkpoint_filter_fn', None)
            load_module(self.network, checkpoint, adapt=adapt)  # timm's filter renames and resizes tensors
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
        """Describe a tap, from a trial run on an empty image. Raises ValueError for an unknown tap or another grid."""
        self._index(name)
        with torch.no_grad():
            found_BDhw = self._maps(self.view(self.trial), (name,))[name]
        if tuple(found_BDhw.shape[-2:]) != self.grid and self.resample is None:
            height, width = found_BDhw.shape[-2:]
            raise ValueError(
                f"'{name}' of {self.model_name} has a {height} × {width} grid, the student {self.grid[0]} × {self.grid[1]}. "
                f"Set the teacher's resample to one of {list(RESAMPLE)}, or choose another img_size."
            )
        return TapSpec('tokens', found_BDhw.shape[1], cls=False)

    def _index(self, name: str) -> int:
        """Look up the intermediate of a tap; the number of intermediates stands for 'output'."""
        count = self.num_intermediates
        if name == 'output':
            return count
        found = re.fullmatch(r'block:(-?[0-9]+)', name)
        if found is None or not -count <= int(found[1]) < count:
            raise ValueError(
                f"TimmTeacher({self.model_name}) has the taps 'output' and 'block:i' with i in [−{count}, {count}), "
                f"got '{name}'. To read relations or attention of a plain ViT, use ViTTeacher."
            )
        return int(found[1]) % count

    def _maps(self, images_BCHW: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Compute the feature maps (B, D, h, w) of the taps, stopping after the last one."""
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
        """Convert timm's final features (tokens, channels-last or channels-first maps) to (B, D, h, w)."""
        if final.dim() == 3:
            patches_BLD = final[:, getattr(self.network, 'num_prefix_tokens', 0) :]
            return patches_BLD.transpose(1, 2).reshape(len(final), -1, *self.network.patch_embed.grid_size)
        return final.permute(0, 3, 1, 2) if getattr(self.network, 'output_fmt', 'NCHW') == 'NHWC' else final

    def _to_grid(self, map_BDhw: Tensor) -> Tensor:
        """Convert a feature map to the student's patches, (B, L, D)."""
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
    """Create a timm model without classifier for this image size. Raises ValueError if that is not possible."""
    if not timm.is_model(name):
        near = timm.list_models(f'*{name.split("_")[0]}*')[:5]
        raise ValueError(f"timm {timm.__version__} has no model '{name}'. Did you mean one of {near}?")
    try:
        network: Any = timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        raise ValueError(f'timm.create_model({name!r}) rejects the options {options}: {error}') from error
    if not hasattr(network, 'forward_intermediates'):
        raise ValueError(f"timm's {name} has no forward_intermediates. Use another model, or write your own Teacher.")
    if hasattr(network, 'set_input_size'):
        network.set_input_size(img_size=image_hw)
    return network
