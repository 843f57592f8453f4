"""timm models as teachers (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import timm
import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.checkpoint.formats import EXPORTS, find_networks
from mkd_plugin.checkpoint.foundation import Foundation, adapt_to, identify
from mkd_plugin.checkpoint.load import load_module
from mkd_plugin.checkpoint.read import CheckpointError
from mkd_plugin.models.protocols import StudentContext, Teacher, freeze
from mkd_plugin.models.teachers.vit import PixelView, check_weights
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask, Tokens

RESAMPLE = ('bilinear', 'bicubic', 'nearest')
# In timm's names of licences that do not allow every use.
RESTRICTED = re.compile('-nc|noncommercial|research|dinov3|nvidia|apple-a|seer|sapiens|gemma')


@MODELS.register_module()
class TimmTeacher(Teacher):
    """Frozen timm model with ``forward_intermediates``: ViTs, pyramids and convolutional networks.

    Its taps:

    - ``block:i``: timm's i-th intermediate, a block of a ViT or a stage of a pyramid.
    - ``output``: timm's final features, after its norm.
    - ``pooled``: one vector an image, what timm's classifier would read: the cls token, a mean, or the result of an
      attention pooling (SigLIP), after the norms that follow. Use it with ``region='cls'``.
    - ``prefix:j``: the j-th of the tokens before the patches (cls, registers), after the norm, likewise.

    ``block:i`` and ``output`` of a ViT have its cls token, if timm returns it with the blocks. For relations or attention
    of a plain ViT use :class:`ViTTeacher`, which loads timm's files too.

    Args:
        model: Name in timm, for example 'resnet50' or 'vit_base_patch16_dinov3'.
        checkpoint: Local file with the model's weights, as timm, its authors, Hugging Face, OpenCLIP or big_vision publish
            them; a classifier in it is dropped.
        seed: Seed for random weights, instead of ``checkpoint``.
        img_size: Side of the teacher's input, pixels. By default chosen so that the grids match, for a ViT that takes any
            size; the model's own, if it takes no other; otherwise the student's.
        resample: How to resample taps to the student's grid if it differs: 'bilinear', 'bicubic' (both antialiased) or
            'nearest'.
        options: Further arguments of ``timm.create_model``.
        pixel_mean: Mean per channel of the teacher's input, 0 … 255; from timm's pretrained config by default.
        pixel_std: Standard deviation likewise.

    Raises:
        ValueError: timm has no such model, or it has no intermediates; not exactly one of ``checkpoint`` and ``seed`` is
            given; the file does not cover the model; timm cannot compute a tap at this size; a tap's grid differs and
            ``resample`` is not given.
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
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            self.network = create(model, {'in_chans': student.network.in_channels, **(options or {})})
        image_hw = set_size(self.network, student, img_size)
        cfg = self.network.pretrained_cfg
        if checkpoint is not None:
            load_weights(self.network, model, checkpoint)
            tell_licence(model, cfg.get('license'))
        freeze(self.network, in_checkpoints=False)
        self.train()
        self.view = PixelView(
            student,
            image_hw=image_hw,
            pixel_mean=[255 * value for value in cfg['mean']] if pixel_mean is None else pixel_mean,
            pixel_std=[255 * value for value in cfg['std']] if pixel_std is None else pixel_std,
        )
        self.num_intermediates = len(self.network.feature_info)
        self.trial = torch.zeros(1, student.network.in_channels, *student.network.image_hw)
        accepted = inspect.signature(self.network.forward_intermediates).parameters
        self.stops_early = 'stop_early' in accepted
        self.num_prefix = getattr(self.network, 'num_prefix_tokens', 0)
        has_cls = self.num_prefix > 0 and getattr(self.network, 'cls_token', True) is not None
        self.has_cls = has_cls and 'return_prefix_tokens' in accepted

    def tap_spec(self, name: str) -> TapSpec:
        """Describe a tap, from a trial run on an empty image.

        Raises:
            ValueError: The tap is unknown, timm cannot compute it, or its grid differs and ``resample`` is not given.
        """
        self._check_name(name)
        try:
            with torch.no_grad():
                prefix_BPD, map_BDhw = self._features(self.view(self.trial), (name,))[name]
        except NoPatches:
            raise ValueError(
                f"timm's final features of {self.model_name} are no grid of patches. Use 'pooled' or 'block:-1' instead of "
                f"'{name}'."
            ) from None
        except Exception as error:  # whatever a model of timm raises
            height, width = self.view.image_hw
            own = self.network.pretrained_cfg['input_size'][-1]
            raise ValueError(
                f"timm's {self.model_name} cannot compute '{name}' of {height} × {width} images "
                f'({type(error).__name__}: {error}). Try img_size={own} with resample, or another tap or model.'
            ) from error
        if map_BDhw is None:
            return TapSpec('tokens', prefix_BPD.shape[2], patches=False)
        if tuple(map_BDhw.shape[-2:]) != self.grid and self.resample is None:
            height, width = map_BDhw.shape[-2:]
            raise ValueError(
                f"'{name}' of {self.model_name} has a {height} × {width} grid, the student {self.grid[0]} × {self.grid[1]}. "
                f"Set the teacher's resample to one of {list(RESAMPLE)}, or choose another img_size."
            )
        return TapSpec('tokens', map_BDhw.shape[1], cls=self.has_cls)

    def _check_name(self, name: str) -> None:
        """Raise ValueError for a tap that no timm model or not this one has."""
        count = self.num_intermediates
        block, prefix = re.fullmatch(r'block:(-?[0-9]+)', name), re.fullmatch(r'prefix:([0-9]+)', name)
        found = name in ('output', 'pooled')
        found |= block is not None and -count <= int(block[1]) < count
        found |= prefix is not None and int(prefix[1]) < self.num_prefix
        if not found:
            tokens = f", 'prefix:j' with j below {self.num_prefix}" if self.num_prefix else ''
            raise ValueError(
                f"TimmTeacher({self.model_name}) has the taps 'output', 'pooled'{tokens} and 'block:i' with i in "
                f"[−{count}, {count}), got '{name}'. To read relations or attention of a plain ViT, use ViTTeacher."
            )

    def _features(self, images_BCHW: Tensor, taps: Sequence[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Compute cls token (B, 1 or 0, D) and map (B, D, h, w) of each tap, stopping after the last one.

        Taps of one vector an image have no map.
        """
        count = self.num_intermediates
        blocks = {name: int(name[len('block:') :]) % count for name in taps if name.startswith('block:')}
        whole = len(blocks) < len(taps)
        wanted = sorted({*blocks.values(), *([count - 1] if whole else [])})
        given: dict[str, Any] = {'return_prefix_tokens': True} if self.has_cls else {}
        if self.stops_early and not whole:
            given['stop_early'] = True
        result = self.network.forward_intermediates(images_BCHW, indices=wanted, intermediates_only=not whole, **given)
        final, maps = result if whole else (None, result)
        found: dict[str, tuple[Tensor, Tensor | None]] = {
            name: self._split(maps[wanted.index(index)]) for name, index in blocks.items()
        }
        for name in set(taps) - set(blocks):
            found[name] = self._final(name, final, self._split(maps[-1])[1])
        return found

    def _split(self, intermediate: Any) -> tuple[Tensor, Tensor]:
        """Divide what timm returns for a block into cls token and map."""
        map_BDhw, prefix_BPD = intermediate if isinstance(intermediate, (tuple, list)) else (intermediate, None)
        if prefix_BPD is None:
            return map_BDhw.new_empty(len(map_BDhw), 0, map_BDhw.shape[1]), map_BDhw
        return prefix_BPD[:, :1], map_BDhw

    def _final(self, name: str, final: Any, last_BDhw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read a tap from timm's final features (tokens, maps, or a list of them) and the map of the last block."""
        if name == 'pooled':
            return self.network.forward_head(final, pre_logits=True).unsqueeze(1), None
        if name.startswith('prefix:'):
            return final[:, int(name[len('prefix:') :])].unsqueeze(1), None
        if isinstance(final, Tensor) and final.dim() == 4:
            channels_last = getattr(self.network, 'output_fmt', 'NCHW') == 'NHWC'
            map_BDhw = final.permute(0, 3, 1, 2) if channels_last else final
            return self._split(map_BDhw)[0], map_BDhw
        rows, columns = last_BDhw.shape[-2:]
        first = final.shape[1] - rows * columns if isinstance(final, Tensor) and final.dim() == 3 else -1
        if not 0 <= first <= max(self.num_prefix, 1):
            raise NoPatches
        map_BDhw = final[:, first:].transpose(1, 2).unflatten(2, (rows, columns))
        return final[:, : int(self.has_cls)], map_BDhw

    def _to_tokens(self, prefix_BPD: Tensor, map_BDhw: Tensor | None) -> Tokens:
        """Resample a map to the student's patches, and put the cls token before them."""
        if map_BDhw is None:
            return Tokens(prefix_BPD)
        if tuple(map_BDhw.shape[-2:]) != self.grid:
            assert self.resample is not None
            smooth = {} if self.resample == 'nearest' else {'antialias': True}
            map_BDhw = F.interpolate(map_BDhw, size=self.grid, mode=self.resample, **smooth)
        patches_BLD = map_BDhw.flatten(2).transpose(1, 2)
        return Tokens(torch.cat([prefix_BPD, patches_BLD], dim=1) if self.has_cls else patches_BLD)

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Run the model on the intact images."""
        found = self._features(self.view(images_BCHW), taps)
        tokens = {name: self._to_tokens(*found[name]) for name in taps}
        return TokenFeatures(tokens, num_prefix=int(self.has_cls))


class NoPatches(Exception):
    """timm's final features are no grid of patches."""


def create(name: str, options: dict[str, Any]) -> Any:
    """Create a timm model without classifier. Raises ValueError if that is not possible."""
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models())
        raise ValueError(f"timm {timm.__version__} has no model '{name}'. The nearest names: {near}.")
    try:
        network: Any = timm.create_model(name, num_classes=0, **options)
    except Exception as error:  # whatever a model of timm raises
        raise ValueError(f'timm.create_model({name!r}) rejects the options {options}: {error}') from error
    if not hasattr(network, 'forward_intermediates'):
        raise ValueError(f"timm's {name} has no forward_intermediates. Use another model.")
    return network


def load_weights(network: Any, model: str, path: str, *, prefix: str = '') -> None:
    """Load a timm model from a file in timm's or another layout (``checkpoint/foundation.yml``); log a line.

    Raises:
        CheckpointError: The file does not cover the model, or holds another one; then the message says which.
    """
    found: list[Foundation] = []

    def adapt(weights: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
        foundation = identify(weights)
        if foundation is None:
            return adapt_to(network, timm_names(weights))
        found.append(foundation)
        if type(network).__module__ not in (f'timm.models.{foundation.layout.module}', 'timm.models.naflexvit'):
            raise CheckpointError(f'timm computes it with another class than {type(network).__name__}.')
        adapted = adapt_to(network, foundation.for_filter())
        adapted = adapt_to(network, adapted)  # timm does not resize a Perception Encoder that it renames
        own = network.state_dict()
        lost = [name for name in adapted if name.endswith(('.q_bias', '.v_bias')) and name not in own]
        if any(bool(adapted[name].any()) for name in lost):
            raise CheckpointError('its queries and values have biases, which the model lacks.')
        return adapted

    try:
        load_module(network, path, prefix=prefix, adapt=adapt)
    except CheckpointError as error:
        if not found:
            raise
        raise CheckpointError(
            f"{path} does not fit timm's {model}: it holds {found[0].sentence()}. Use {found[0].config(path)}. "
            f'The reason: {error}'
        ) from error


def timm_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the tensors of one of Hugging Face's plain ViTs (ViT, DINOv2, CLIP) as timm has them; keep all others."""
    networks = [entry for entry in find_networks(weights) if entry.format.name.startswith('hf_')]
    if len(networks) != 1:
        return weights
    return EXPORTS['timm'].to_theirs(networks[0].format.to_ours(networks[0].inside(weights)).tensors)[0]


def set_size(network: Any, student: StudentContext, img_size: int | None) -> tuple[int, int]:
    """Choose the size of a timm model's input (see ``img_size`` of :class:`TimmTeacher`), set it, and return it."""
    adaptable = hasattr(network, 'set_input_size')
    reductions = {stage['reduction'] for stage in network.feature_info}
    image_hw = student.network.image_hw
    if img_size is not None:
        image_hw = (img_size, img_size)
    elif len(reductions) == 1 and adaptable:  # a ViT: all blocks have the grid of the patches
        (patch,) = reductions
        image_hw = (student.grid[0] * patch, student.grid[1] * patch)
    elif network.pretrained_cfg.get('fixed_input_size') and not adaptable:
        image_hw = network.pretrained_cfg['input_size'][1:]
    if adaptable:
        network.set_input_size(img_size=image_hw)
    return image_hw


@lru_cache
def tell_licence(model: str, licence: str | None) -> None:
    """Print once that the weights of a model may have a restricted licence."""
    if licence is not None and RESTRICTED.search(licence.lower()):
        print_log(
            f"timm names '{licence}' as the licence of {model}'s weights. Read it before you use or publish a student.",
            'current',
        )
