"""The networks that a report or a table is about, from files of any known format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.formats import find_networks, without_wrapper
from mkd_plugin.checkpoint.infer_arch import network_options, stated_options
from mkd_plugin.checkpoint.load import convert_weights, fill_network
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, weights_of
from mkd_plugin.checkpoint.releases import CLIP, HALF, IMAGENET
from mkd_plugin.checkpoint.report import LoadReport, shorten
from mkd_plugin.checkpoint.write import sha256_of
from mkd_plugin.interop.inspect import guess_format
from mkd_plugin.interop.specs import Request, parse_requests
from mkd_plugin.models.vit import VisionTransformer

Statistics = tuple[Sequence[float], Sequence[float]]

PIXELS: dict[str, Statistics] = {'imagenet': IMAGENET, 'clip': CLIP, 'half': HALF}
FINAL_NORM = ('ln1.weight', 'ln1.bias')


@dataclass(frozen=True)
class Subject:
    """A network that is measured.

    Attributes:
        name: What the report calls it.
        source: Its file, and the part of it.
        identity: All that its outputs depend on: the file's sha256, the part, the network's options, the pixels.
        network: In evaluation mode.
        pixels: Mean and standard deviation per channel, 0 … 255.
        format: Whose file it is.
        notes: What was assumed because the file does not say it.
        final_norm: Whether the file has a norm for the last block's tokens.
    """

    name: str
    source: str
    identity: str
    network: VisionTransformer
    pixels: Statistics
    format: str
    notes: tuple[str, ...] = ()
    final_norm: bool = True

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.cls_token.device

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """RGB in [0, 1] → what the network was trained on."""
        mean_C11, std_C11 = (images_BCHW.new_tensor(values).view(-1, 1, 1) / 255 for values in self.pixels)
        return (images_BCHW - mean_C11) / std_C11

    @property
    def parameters(self) -> int:
        """How many numbers it learned."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def description(self) -> dict[str, Any]:
        """For the table of models."""
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
class Opened:
    """A file, and what is known of its network.

    Attributes:
        checkpoint: Its content, or the state dict that timm made of it.
        prefix: Where the network is; None to look for it.
        stated: Options of the network that are certain.
        pixels: Statistics that are certain; None if nobody says them.
        notes: Where these come from.
        theirs: timm's own network, if timm read the file.
    """

    checkpoint: dict[str, Any]
    prefix: str | None
    stated: dict[str, Any]
    pixels: Statistics | None
    notes: list[str] = field(default_factory=list)
    theirs: nn.Module | None = None


def load_subjects(
    texts: Sequence[str], *, known: Mapping[str, Any], device: str, pixels: str | None = None
) -> list[Subject]:
    """Load every network that is asked for; see :class:`Request` and :func:`load_subject`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Two have the same name, or one cannot be loaded.
    """
    return [load_subject(request, known=known, device=device, pixels=pixels) for request in parse_requests(texts)]


def load_subject(request: Request, *, known: Mapping[str, Any], device: str, pixels: str | None = None) -> Subject:
    """Load one network, strictly.

    Args:
        request: Which.
        known: Options of networks whose files do not state them.
        device: Where to.
        pixels: Statistics for files that do not state them: a name in ``PIXELS``. By default CLIP's for CLIP's formats, and
            ImageNet's otherwise.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or is of no ViT that is known, or not of the network that was said; unknown ``pixels``.
    """
    if pixels not in (None, *PIXELS):
        raise ValueError(f"pixels='{pixels}': use one of {list(PIXELS)}.")
    path = request.path
    opened = open_file(request) if request.timm_model is None else open_with_timm(request, request.timm_model)
    weights = without_wrapper(weights_of(opened.checkpoint, path))
    check_transformer(weights, path)
    found, converted = convert_weights(weights, path, opened.prefix)
    options = network_options(converted.tensors, {**known, **opened.stated})
    if options['in_channels'] != 3:
        raise ValueError(f'{path} wants images of {options["in_channels"]} channels; only RGB can be measured here.')
    network = VisionTransformer(**options).eval()
    report = fill_network(network, opened.checkpoint, path, prefix=found.prefix, allow_missing=FINAL_NORM)
    if opened.theirs is not None:
        from mkd_plugin.interop.timm_model import check_same_tokens  # timm takes its time

        check_same_tokens(opened.theirs, network, path)
    statistics, notes = choose_pixels(opened, pixels, found.format.name)
    notes += remarks(opened, network, report, known)
    part = found.prefix or 'the whole file'
    said = f'{sorted(network.options.items())} {[list(map(float, values)) for values in statistics]}'
    return Subject(
        name=request.name,
        source=str(path) if request.part is None else f'{path}#{request.part}',
        identity=f'{sha256_of(path)} {part} {said}',
        network=network.to(device),
        pixels=statistics,
        format=found.format.title,
        notes=tuple(notes),
        final_norm=not report.missing,
    )


def remarks(opened: Opened, network: VisionTransformer, report: LoadReport, known: Mapping[str, Any]) -> list[str]:
    """What else a reader has to know of a network that was loaded."""
    notes = []
    if not {'arch', 'num_heads'} & {*opened.stated, *known}:
        notes.append(f'{network.arch.num_heads} attention heads, by its width (state it with --network num_heads=…)')
    if report.missing:
        notes.append('it has no norm for tokens after the last block')
    if report.unexpected:
        notes.append(f'tensors of the file that are not understood: {shorten(report.unexpected)}')
    return notes


def open_file(request: Request) -> Opened:
    """Read a file whose format is told by its names."""
    checkpoint = read_checkpoint(request.path, lazy=True)
    about, release = provenance_of(checkpoint), request.release
    prefix = request.part or (release.prefix if release else None)
    if 'backbone' in about:
        prefix = {None: None, 'student': 'backbone.'}.get(prefix, prefix)
        prefix = f'teachers.{prefix}.network.' if prefix in about.get('teachers', []) else prefix
    stated = stated_options(checkpoint)
    if release is not None:
        note = f'network and pixels as of the release {release.name}'
        return Opened(checkpoint, prefix, {**stated, **(release.network or {})}, release.statistics, [note])
    pixels = (about['pixel_mean'], about['pixel_std']) if 'pixel_mean' in about else None
    return Opened(checkpoint, prefix, stated, pixels)


def open_with_timm(request: Request, model: str) -> Opened:
    """Let timm read a file for a model of its own, which then says what names and shapes do not."""
    from mkd_plugin.interop.timm_model import options_of, read_as_timm, statistics_of  # timm takes its time

    theirs = read_as_timm(model, request.path, request.part)
    note = f"network and pixels as of timm's {model}; its tokens were compared with timm's"
    return Opened({'state_dict': theirs.state_dict()}, '', options_of(theirs), statistics_of(theirs), [note], theirs)


def check_transformer(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError if a file is of a known network that has no tokens."""
    if not find_networks(weights) and guess_format(weights) == 'ResNet':
        raise ValueError(
            f'{path} is of a ResNet, which has neither attention nor tokens: nothing can be measured here. Give checkpoints of '
            'Vision Transformers.'
        )


def choose_pixels(opened: Opened, pixels: str | None, format_name: str) -> tuple[Statistics, list[str]]:
    """Mean and standard deviation, 0 … 255, and all that has to be said."""
    if opened.pixels is not None:
        return opened.pixels, opened.notes
    if pixels is not None:
        return PIXELS[pixels], [*opened.notes, f'pixel statistics as told: --pixels {pixels}']
    if format_name in ('clip', 'hf_clip', 'hf_clip_tower'):
        return CLIP, [*opened.notes, "CLIP's pixel statistics, by its format"]
    guess = "ImageNet's pixel statistics: the file states none (others: --pixels)"
    return IMAGENET, [*opened.notes, guess]
