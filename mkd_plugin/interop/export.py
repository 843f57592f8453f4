"""Export our tensors to the classes of other libraries that can hold our network, and compare the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.formats import EXPORTS, Format
from mkd_plugin.interop.libraries import TABLE, HuggingFace, Library, MMPretrain, OpenCLIP, Options, Timm
from mkd_plugin.models.vit import VisionTransformer

TOLERANCE = 1e-4  # relative to the largest magnitude
PRETRAINING_ONLY = ('mask_token',)  # other libraries' backbones have none

Features = frozenset[str]  # what a network has besides a plain ViT with absolute positions on a square image

SCALE, PRE_NORM, QUICK, PROJECTION = 'layer scale', 'a norm before the first block', 'quick GELU', 'a projection'
SHARED, PER_BLOCK = 'a relative position bias shared by all blocks', 'a relative position bias in every block'
DISTILLED, REGISTERS, NO_TABLE = 'a distillation token', 'register tokens', 'no absolute positions'
NOT_SQUARE = 'an image that is not square'
NO_CLS, NO_NORM = 'no cls token', 'no final norm'
DINOV3, EVA02 = 'rotary positions of DINOv3', 'rotary positions of EVA-02'
GATED, TANH = 'gated MLPs', "tanh's GELU"
MLP_NORM, BOTH_NORMS = 'a norm inside its MLPs', 'norms inside its MLPs and attention'
FEATURES = dict(  # by their names in classes.yml
    scale=SCALE, pre_norm=PRE_NORM, quick=QUICK, projection=PROJECTION, shared=SHARED, per_block=PER_BLOCK,
    distilled=DISTILLED, registers=REGISTERS, no_table=NO_TABLE, not_square=NOT_SQUARE, no_cls=NO_CLS, no_norm=NO_NORM,
    dinov3=DINOV3, eva02=EVA02, gated=GATED, tanh=TANH, mlp_norm=MLP_NORM, both_norms=BOTH_NORMS,
)  # fmt: skip


@dataclass(frozen=True)
class ForeignClass:
    """A class of another library."""

    target: str  #: Name of the export that produces it
    name: str  #: The class
    library: Library  #: Builds and runs it
    format: Format  #: Names of its tensors
    supports: Features = frozenset()  #: Features that it may have
    requires: Features = frozenset()  #: Features that it must have
    label: str | None = None  #: Title, if the name of the class is not enough

    @property
    def title(self) -> str:
        """Library and class, for people."""
        return f'{self.library.package} {self.label or self.name}'

    @property
    def installed(self) -> bool:
        return find_spec(self.library.package) is not None

    def fits(self, features: Features) -> bool:
        """Whether the class can have exactly these features."""
        return self.requires <= features <= self.supports | self.requires


def read_classes() -> Iterator[ForeignClass]:
    libraries = {library.package: library for library in (Timm(), MMPretrain(), HuggingFace(), OpenCLIP())}
    for target, entries in TABLE['classes'].items():
        for entry in entries:
            yield ForeignClass(
                target,
                entry['name'],
                libraries[entry['library']],
                EXPORTS[entry['format']],
                supports=frozenset(FEATURES[name] for name in entry.get('supports', ())),
                requires=frozenset(FEATURES[name] for name in entry.get('requires', ())),
                label=entry.get('label'),
            )


# Of several classes that fit, the first is taken.
FOREIGN_CLASSES = tuple(read_classes())
TARGETS = tuple(dict.fromkeys(entry.target for entry in FOREIGN_CLASSES))


def features_of(options: Options) -> Features:
    """List the features of a network from its options."""
    size, relative = options['img_size'], options['relative_position']
    has = {
        SCALE: options['layer_scale'] is not None,
        PRE_NORM: options['pre_norm'],
        QUICK: options['activation'] == 'quick_gelu',
        GATED: options['activation'] == 'swiglu',
        TANH: options['activation'] == 'gelu_tanh',
        MLP_NORM: options['inner_norm'] == 'mlp',
        BOTH_NORMS: options['inner_norm'] == 'both',
        DINOV3: options['rope'] == 'dinov3',
        EVA02: options['rope'] == 'eva02',
        NO_CLS: not options['cls_token'],
        NO_NORM: not options['final_norm'],
        PROJECTION: options['projection'] is not None,
        SHARED: relative == 'shared',
        PER_BLOCK: relative == 'per_block',
        DISTILLED: options['distillation_token'],
        REGISTERS: options['num_registers'] > 0,
        NO_TABLE: options['position'] == 'none',
        NOT_SQUARE: not isinstance(size, int) and size[0] != size[1],
    }
    return frozenset(feature for feature, present in has.items() if present)


def find_class(target: str, options: Options) -> ForeignClass:
    """Find the class of a library that can hold a network with these options; ValueError if none can."""
    classes = [entry for entry in FOREIGN_CLASSES if entry.target == target]
    if not classes:
        raise ValueError(f"There is no target '{target}': use 'mkd' or one of {list(TARGETS)}.")
    features = features_of(options)
    fitting = [entry for entry in classes if entry.fits(features)]
    if fitting:
        return fitting[0]
    closest = min(
        classes, key=lambda entry: len(features - entry.supports - entry.requires) + len(entry.requires - features)
    )
    lacking = ' and '.join(sorted(features - closest.supports - closest.requires))
    needed = ' and '.join(sorted(closest.requires - features))
    reasons = [f'has no place for {lacking}'] if lacking else []
    reasons += [f'needs {needed}, which this network does not have'] if needed else []
    raise ValueError(
        f"'{target}' cannot hold this network: its closest class, {closest.label or closest.name}, "
        f'{", and ".join(reasons)}.'
    )


def export_weights(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], target: str
) -> tuple[ForeignClass, dict[str, Tensor], list[str]]:
    """Rename a network's tensors for another library.

    Args:
        tensors: The network's state dict.
        options: The network's options.
        target: 'mmpretrain', 'timm', 'hf', 'mae' or 'openclip'.

    Returns:
        The library's class, its state dict, and the names of our tensors that were left out.

    Raises:
        ValueError: The library has no class with all features of the network; the message names those it lacks.
    """
    foreign = find_class(target, options)
    kept = {name: tensor for name, tensor in tensors.items() if name not in PRETRAINING_ONLY}
    exported, left = foreign.format.to_theirs(kept)
    if left:
        raise ValueError(f"'{target}' has no place for {left[:6]} in its {foreign.label or foreign.name}.")
    return foreign, exported, [name for name in tensors if name in PRETRAINING_ONLY]


def build_filled(foreign: ForeignClass, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Build another library's network with these weights, in eval mode. Raises ValueError if they do not cover it."""
    network = foreign.library.build(foreign.name, options)
    missing, unexpected = network.load_state_dict(dict(weights), strict=False)
    buffers = {name for name, _ in network.named_buffers()}
    missing = [name for name in missing if name not in buffers]
    if missing:
        raise ValueError(f'{foreign.title} misses {missing[:6]}; it does not know {unexpected[:6]}.')
    network.eval()  # mmpretrain's returns None
    return network


def largest_error(
    run: Callable[[Any, Tensor], Mapping[str, Tensor]], theirs: nn.Module, ours: VisionTransformer
) -> float:
    """Compare the tokens of a random image.

    Args:
        run: Returns the tokens of ``theirs``, keyed by our tap that must equal them; cls alone is allowed.
        theirs: The other network.
        ours: Our network.

    Returns:
        The largest difference over the largest magnitude, maximum over the taps; NaN if a token is not finite, so that
        ``error <= TOLERANCE`` is False then.
    """
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(1, ours.in_channels, *ours.image_hw, generator=generator)
    errors = []
    with torch.inference_mode():
        wanted = run(theirs, images_BCHW)
        features = ours.eval()(images_BCHW, taps=tuple(wanted))
        for tap, tokens_BND in wanted.items():
            found_BND = features.tokens(tap)[:, : tokens_BND.shape[1]]
            largest = tokens_BND.abs().max().clamp_min(torch.finfo(tokens_BND.dtype).tiny)
            errors.append(((found_BND - tokens_BND) / largest).abs().max())
    return torch.stack(errors).max().item()  # unlike Python's max, torch's gives NaN if any is
