"""The same network in other libraries: which class of theirs it is, and what it can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from mkd_plugin.checkpoint.formats import Format
from mkd_plugin.checkpoint.formats.huggingface import HF_BEIT, HF_CLIP, HF_DINOV2, HF_VIT
from mkd_plugin.checkpoint.formats.own import CLIP, MMPRETRAIN, MMPRETRAIN_BEIT
from mkd_plugin.checkpoint.formats.timm_like import BEIT, TIMM
from mkd_plugin.interop.libraries import huggingface, mmpretrain, open_clip_vit, timm_vit

Options = Mapping[str, Any]

SCALE, PRE_NORM, QUICK, PROJECTION = 'layer scale', 'a norm before the first block', 'quick GELU', 'a projection'
SHARED, PER_BLOCK = 'a relative position bias shared by all blocks', 'a relative position bias in every block'
DISTILLED, REGISTERS, NO_TABLE = 'a distillation token', 'register tokens', 'no absolute positions'
NOT_SQUARE = 'an image that is no square'
RELATIVE = (frozenset({SHARED}), frozenset({PER_BLOCK}))


@dataclass(frozen=True)
class Kind:
    """A class of another library.

    Attributes:
        target: What an export to it is called.
        title: For people.
        package: The library's module, which is only needed to check the outcome.
        format: How it names tensors.
        build: Makes the network from our options, with random weights.
        run: Gives the network's tokens by the tap of ours that they should equal; cls alone where it gives only that.
        has: What it can have beside a plain ViT with absolute positions on a square image.
        needs: What it must have.
        config: Its ``config.json``, if it is one of Hugging Face's.
    """

    target: str
    title: str
    package: str
    format: Format
    build: Callable[[Options], nn.Module]
    run: Callable[[Any, Tensor], dict[str, Tensor]]
    has: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    config: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the library can be imported."""
        return find_spec(self.package) is not None

    def suits(self, features: set[str]) -> bool:
        """Whether it can be a network with these features."""
        return self.needs <= features <= self.has | self.needs


def of(*features: str) -> frozenset[str]:
    """A set of features."""
    return frozenset(features)


def timm(title: str, build: Callable[[Options], nn.Module], *, target: str = 'timm', **more: Any) -> Kind:
    """A class of timm."""
    return Kind(target, title, 'timm', more.pop('format', TIMM), build, timm_vit.run, **more)


def mm(title: str, build: Callable[[Options], nn.Module], **more: Any) -> Kind:
    """A class of mmpretrain."""
    return Kind('mmpretrain', title, 'mmpretrain', more.pop('format', MMPRETRAIN), build, mmpretrain.run, **more)


def hf(title: str, kind: str, **more: Any) -> Kind:
    """A class of Hugging Face."""
    run = huggingface.run_clip if kind.startswith('clip') else huggingface.run
    build = huggingface.BUILDERS[kind]
    return Kind('hf', title, 'transformers', more.pop('format', HF_VIT), build, run, config=kind, **more)


BEIT_HAS = of(SCALE, NO_TABLE, NOT_SQUARE)
KINDS: tuple[Kind, ...] = (
    timm("MAE's encoder", timm_vit.build_vit, target='mae', has=of(NOT_SQUARE)),
    timm('VisionTransformer', timm_vit.build_vit, has=of(SCALE, QUICK, REGISTERS, NOT_SQUARE)),
    timm(
        'VisionTransformer of CLIP',
        timm_vit.build_vit,
        needs=of(PRE_NORM),
        has=of(SCALE, QUICK, PROJECTION, NOT_SQUARE),
    ),
    timm('VisionTransformerDistilled', timm_vit.build_distilled, needs=of(DISTILLED), has=of(SCALE, QUICK, NOT_SQUARE)),
    *(timm('Beit', timm_vit.build_beit, format=BEIT, needs=needs, has=BEIT_HAS) for needs in RELATIVE),
    mm('VisionTransformer', mmpretrain.build_vit, has=of(SCALE, QUICK, PRE_NORM, NOT_SQUARE)),
    mm(
        'DistilledVisionTransformer',
        mmpretrain.build_distilled,
        needs=of(DISTILLED),
        has=of(SCALE, QUICK, NOT_SQUARE),
    ),
    *(
        mm('BEiTViT', mmpretrain.build_beit, format=MMPRETRAIN_BEIT, needs=needs, has=BEIT_HAS | {QUICK})
        for needs in RELATIVE
    ),
    hf('ViTModel', 'vit', has=of(QUICK, NOT_SQUARE)),
    hf('DeiTModel', 'deit', needs=of(DISTILLED), has=of(QUICK, NOT_SQUARE)),
    hf('Dinov2Model', 'dinov2', format=HF_DINOV2, needs=of(SCALE), has=of(QUICK)),
    hf('Dinov2WithRegistersModel', 'dinov2_registers', format=HF_DINOV2, needs=of(SCALE, REGISTERS), has=of(QUICK)),
    *(hf('BeitModel', 'beit', format=HF_BEIT, needs=needs, has=of(SCALE, NO_TABLE, QUICK)) for needs in RELATIVE),
    hf('CLIPVisionModel', 'clip_unprojected', format=HF_CLIP, needs=of(PRE_NORM), has=of(QUICK)),
    hf('CLIPVisionModelWithProjection', 'clip', format=HF_CLIP, needs=of(PRE_NORM, PROJECTION), has=of(QUICK)),
    Kind(
        'openclip',
        'VisionTransformer',
        'open_clip',
        CLIP,
        open_clip_vit.build,
        open_clip_vit.run,
        needs=of(PRE_NORM, PROJECTION),
        has=of(QUICK, SCALE, NOT_SQUARE),
    ),
)
TARGETS = tuple(dict.fromkeys(kind.target for kind in KINDS))


def features_of_options(options: Options) -> set[str]:
    """What a network has beside a plain ViT with absolute positions on a square image."""
    size = options['img_size']
    relative = options['relative_position']
    has = {
        SCALE: options['layer_scale'] is not None,
        PRE_NORM: options['pre_norm'],
        QUICK: options['activation'] == 'quick_gelu',
        PROJECTION: options['projection'] is not None,
        SHARED: relative == 'shared',
        PER_BLOCK: relative == 'per_block',
        DISTILLED: options['distillation_token'],
        REGISTERS: options['num_registers'] > 0,
        NO_TABLE: options['position'] == 'none',
        NOT_SQUARE: not isinstance(size, int) and size[0] != size[1],
    }
    return {name for name, there in has.items() if there}


def choose_kind(target: str, options: Options) -> Kind:
    """The class of a library that a network is of.

    Raises:
        ValueError: There is no such target, or it has no class with all that the network has.
    """
    kinds = [kind for kind in KINDS if kind.target == target]
    if not kinds:
        raise ValueError(f"There is no target '{target}': use 'mkd' or one of {list(TARGETS)}.")
    features = features_of_options(options)
    suitable = [kind for kind in kinds if kind.suits(features)]
    if suitable:
        return suitable[0]
    closest = min(kinds, key=lambda kind: len(features - kind.has - kind.needs) + len(kind.needs - features))
    lacking = sorted(features - closest.has - closest.needs) or sorted(features)
    raise ValueError(
        f"'{target}' has no network with {' and '.join(sorted(features)) or 'none of these'}: its {closest.title}, which comes "
        f'closest, lacks {" and ".join(lacking)}.'
    )
