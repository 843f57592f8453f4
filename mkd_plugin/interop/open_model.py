"""Open a file of any known format, or of a model of timm, as a network ready to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.formats import find_networks, strip_compile_prefix
from mkd_plugin.checkpoint.infer_arch import check_claims, infer_options, options_in_metadata
from mkd_plugin.checkpoint.load import convert_weights, fill_network
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, refusing, weights_of
from mkd_plugin.checkpoint.releases import CLIP_PIXELS, HALF_PIXELS, IMAGENET_PIXELS
from mkd_plugin.checkpoint.report import LoadReport, shorten
from mkd_plugin.interop.export import TOLERANCE, largest_error
from mkd_plugin.interop.inspect import guess_format
from mkd_plugin.interop.specs import ModelSpec, parse_specs
from mkd_plugin.models.teachers.timm import create, load_weights
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.utils.files import sha256_of

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel, 0 … 255

PIXEL_STATISTICS: dict[str, Statistics] = {'imagenet': IMAGENET_PIXELS, 'clip': CLIP_PIXELS, 'half': HALF_PIXELS}
TIMM_ACTIVATIONS = {'GELU': 'gelu', 'QuickGELU': 'quick_gelu', 'GELUTanh': 'gelu_tanh', 'SiLU': 'swiglu'}
FINAL_NORM = ('ln1.weight', 'ln1.bias')


@dataclass(frozen=True)
class OpenedModel:
    """A network with all that is needed to run it on images."""

    name: str  #: Name in reports
    source: str  #: The file, and the part of it
    identity: str  #: Everything the outputs depend on: the file's sha256, the part, the network's options, the pixels
    network: VisionTransformer  #: The network in eval mode
    pixels: Statistics  #: Mean and standard deviation per channel, 0 … 255
    format: str  #: Title of the file's format
    notes: tuple[str, ...] = ()  #: What was assumed because the file does not say it
    final_norm: bool = True  #: Whether the file has a norm for the last block's tokens
    prefix: str | None = None  #: Prefix of the network's names in the file

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Normalise RGB in [0, 1] as in the network's training."""
        mean_C11, std_C11 = (images_BCHW.new_tensor(values).view(-1, 1, 1) / 255 for values in self.pixels)
        return (images_BCHW - mean_C11) / std_C11

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def description(self) -> dict[str, Any]:
        """Entries of a table of models."""
        network = self.network
        return {
            'source': self.source,
            'format': self.format,
            'identity': self.identity,
            'parameters': self.parameters,
            'blocks': network.arch.depth,
            'width': network.arch.width,
            'heads': network.arch.num_heads,
            'patch_size': network.patch_size,
            'image_hw': list(network.image_hw),
            'grid': list(network.grid),
            'prefix_tokens': network.num_prefix,
            'pixel_mean': list(self.pixels[0]),
            'pixel_std': list(self.pixels[1]),
            'notes': list(self.notes),
        }


@dataclass
class SourceFile:
    """A file that was read, and what is known about its network."""

    checkpoint: dict[str, Any]  #: the file's content, or the state dict that timm made of it
    prefix: str | None  #: None to detect it
    options: dict[str, Any]
    pixels: Statistics | None
    notes: list[str] = field(default_factory=list)  #: where options and statistics come from
    theirs: nn.Module | None = None  #: timm's network, if timm read the file


def open_models(
    texts: Sequence[str], *, known: Mapping[str, Any], device: str, pixels: str | None = None
) -> list[OpenedModel]:
    """Open several models with :func:`open_model`. Raises ValueError also if two have the same name."""
    return [open_model(spec, known=known, device=device, pixels=pixels) for spec in parse_specs(texts)]


def open_model(spec: ModelSpec, *, known: Mapping[str, Any], device: str, pixels: str | None = None) -> OpenedModel:
    """Open one model; its weights are loaded strictly.

    Args:
        spec: The file, and which network it holds.
        known: Options of ``VisionTransformer`` for files that do not state them.
        device: Device of the network.
        pixels: Key of ``PIXEL_STATISTICS`` for files that do not state theirs. By default CLIP's for formats of CLIP, and
            ImageNet's for all others.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, does not hold a known ViT or not the stated network; ``pixels`` is unknown.
    """
    if pixels not in (None, *PIXEL_STATISTICS):
        raise ValueError(f"pixels='{pixels}': use one of {list(PIXEL_STATISTICS)}.")
    path = spec.path
    source = read_source(spec) if spec.timm_model is None else read_source_with_timm(spec, spec.timm_model)
    weights = strip_compile_prefix(weights_of(source.checkpoint, path))
    if not find_networks(weights) and guess_format(weights) == 'ResNet':
        raise ValueError(f'{path} holds a ResNet, which has neither attention nor tokens. Give a checkpoint of a ViT.')
    with refusing(path):
        found, converted = convert_weights(weights, path, source.prefix)
        if source.theirs is None:
            check_claims(converted.tensors, options_in_metadata(source.checkpoint))
        options = infer_options(converted.tensors, {**known, **source.options})
    if options['in_channels'] != 3:
        raise ValueError(f'{path} takes images of {options["in_channels"]} channels; only RGB is supported here.')
    network = VisionTransformer(**options).eval()
    report = fill_network(network, source.checkpoint, path, prefix=found.prefix, allow_missing=FINAL_NORM)
    if source.theirs is not None and not (error := largest_error(last_block, source.theirs, network)) <= TOLERANCE:
        raise ValueError(
            f"{path}: timm's {type(source.theirs).__name__} computes something else than the plain ViT here: tokens differ by "
            f'{error:.1e} of their largest magnitude, {TOLERANCE:.0e} is allowed. It cannot be opened.'
        )
    kind = found.format.name if options['cls_token'] else 'siglip'
    statistics, notes = choose_pixels(source, pixels, kind)
    part = found.prefix or 'the whole file'
    settings = f'{sorted(network.options.items())} {[list(map(float, values)) for values in statistics]}'
    return OpenedModel(
        name=spec.name,
        source=str(path) if spec.part is None else f'{path}#{spec.part}',
        identity=f'{sha256_of(path)} {part} {settings}',
        network=network.to(device),
        pixels=statistics,
        format=found.format.title,
        notes=(*notes, *assumptions(source, network, report, known)),
        final_norm=not report.missing and network.options['final_norm'],
        prefix=found.prefix,
    )


def read_source(spec: ModelSpec) -> SourceFile:
    """Read a file whose format is detected from its names."""
    checkpoint = read_checkpoint(spec.path, lazy=True)
    provenance, release = provenance_of(checkpoint), spec.release
    teachers = provenance.get('teachers')
    prefix = spec.part or (release.prefix if release else None)
    if 'backbone' in provenance:
        prefix = 'backbone.' if prefix == 'student' else prefix
        prefix = f'teachers.{prefix}.network.' if prefix in (teachers if isinstance(teachers, list) else []) else prefix
    with refusing(spec.path):
        options = options_in_metadata(checkpoint)
    if release is not None:
        note = f'network and pixels as of the release {release.name}'
        return SourceFile(checkpoint, prefix, {**options, **(release.network or {})}, release.statistics, [note])
    if 'pixel_mean' not in provenance:
        return SourceFile(checkpoint, prefix, options, None)
    with refusing(spec.path):
        mean, std = ([float(value) for value in provenance[name]] for name in ('pixel_mean', 'pixel_std'))
    return SourceFile(checkpoint, prefix, options, (mean, std))


def read_source_with_timm(spec: ModelSpec, model: str) -> SourceFile:
    """Read a file as a model of timm, which determines what names and shapes do not."""
    theirs = read_as_timm(model, spec.path, spec.part)
    note = f"network and pixels as of timm's {model}; its tokens were compared with timm's"
    checkpoint = {'state_dict': theirs.state_dict()}
    stated: Any = theirs.pretrained_cfg  # with the preprocessing for these weights, in [0, 1]
    mean, std = (tuple(round(255 * value, 4) for value in stated[name]) for name in ('mean', 'std'))
    return SourceFile(checkpoint, '', options_of(theirs), (mean, std), [note], theirs)


def choose_pixels(source: SourceFile, pixels: str | None, format_name: str) -> tuple[Statistics, list[str]]:
    """Return the pixel statistics, and notes that say where they come from."""
    if source.pixels is not None:
        return source.pixels, source.notes
    if pixels is not None:
        return PIXEL_STATISTICS[pixels], [*source.notes, f'pixel statistics from --pixels {pixels}']
    if format_name in ('clip', 'hf_clip', 'hf_clip_tower', 'eva02'):
        return CLIP_PIXELS, [*source.notes, "CLIP's pixel statistics, because of the format"]
    if format_name == 'siglip':
        return HALF_PIXELS, [*source.notes, "SigLIP's pixel statistics, because there is no cls token"]
    note = "ImageNet's pixel statistics: the file states none (change them with --pixels)"
    return IMAGENET_PIXELS, [*source.notes, note]


def assumptions(
    source: SourceFile, network: VisionTransformer, report: LoadReport, known: Mapping[str, Any]
) -> list[str]:
    """Note what else was assumed or is missing."""
    notes = []
    if not {'arch', 'num_heads'} & {*source.options, *known}:
        notes.append(f'{network.arch.num_heads} attention heads, from the width (set them with --network num_heads=…)')
    if report.missing or not network.options['final_norm']:
        notes.append('it has no norm for tokens after the last block')
    if report.unexpected:
        notes.append(f'tensors of the file that are unknown: {shorten(report.unexpected)}')
    return notes


def read_as_timm(model: str, path: str | Path, prefix: str | None = None) -> nn.Module:
    """Load a file of any layout that :class:`TimmTeacher` reads into a model of timm. Nothing is downloaded.

    Raises:
        ValueError: timm has no such model, it is not a plain ViT, or the file does not cover it.
    """
    network: nn.Module = create(model, {})
    no_cls = getattr(network, 'cls_token', None) is None and getattr(network, 'num_prefix_tokens', None) != 0
    if not hasattr(network, 'blocks') or no_cls:
        raise ValueError(
            f"timm's {model} is a {type(network).__name__} without a cls token or without blocks, so it is not a plain ViT. "
            'Only plain ViTs can be opened here.'
        )
    load_weights(network, model, str(path), prefix=prefix or '')
    return network.eval()


def options_of(network: Any) -> dict[str, Any]:
    """Return options of our ViT that tensors do not determine. Raises ValueError for an activation that ours lacks."""
    block = network.blocks[0]
    activation = type(getattr(block.mlp, 'act', None)).__name__
    if activation not in TIMM_ACTIVATIONS:
        raise ValueError(
            f"timm's {type(network).__name__} has the activation {activation}; ours has {sorted(TIMM_ACTIVATIONS)}."
        )
    return {
        'num_heads': block.attn.num_heads,
        'norm_eps': block.norm1.eps,
        'activation': TIMM_ACTIVATIONS[activation],
        'img_size': network.patch_embed.img_size,
    }


def last_block(network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Run a model of timm and return the tokens of its last block."""
    outputs: list[Tensor] = []
    handle = network.blocks[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    network.forward_features(images_BCHW)
    handle.remove()
    return {'block:-1': outputs[0]}
