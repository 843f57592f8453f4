"""The networks of a report, from files of any known format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkd_plugin.checkpoint.anatomy import network_options
from mkd_plugin.checkpoint.formats import find_networks, without_wrapper
from mkd_plugin.checkpoint.load import convert_weights, fill_network
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, weights_of
from mkd_plugin.checkpoint.releases import CLIP, IMAGENET, RELEASES, Release
from mkd_plugin.checkpoint.stated import stated_options
from mkd_plugin.checkpoint.write import sha256_of
from mkd_plugin.launch.inspect import guess_format
from mkd_plugin.models.vit import VisionTransformer

__all__ = ['Subject', 'load_subjects']


@dataclass(frozen=True)
class Subject:
    """A network that is measured.

    Attributes:
        name: What the report calls it.
        source: Its file, and the part of it.
        identity: The file's sha256, the part, and the options of the network.
        network: In evaluation mode.
        mean_C11: Of the pixels it wants, for RGB in [0, 1].
        std_C11: Likewise.
        format: Whose file it is.
        notes: What was assumed because the file does not say it.
    """

    name: str
    source: str
    identity: str
    network: VisionTransformer
    mean_C11: Tensor
    std_C11: Tensor
    format: str
    notes: tuple[str, ...] = ()

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """RGB in [0, 1] → what the network was trained on."""
        return (images_BCHW - self.mean_C11) / self.std_C11

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
            'notes': list(self.notes),
        }


@dataclass
class Request:
    """``[NAME=]PATH[#PART]`` of the command line."""

    text: str
    name: str = field(init=False)
    path: Path = field(init=False)
    part: str | None = field(init=False)

    def __post_init__(self) -> None:
        place, _, part = self.text.partition('#')
        name, given, path = place.partition('=')
        if not given or Path(place).exists():
            name, path = '', place
        self.path, self.part = Path(path).expanduser(), part or None
        self.named = bool(name)
        self.name = name or (f'{self.path.stem}#{part}' if part else self.path.stem)

    @property
    def longer_name(self) -> str:
        """With the file's folder, for files of the same name in different runs."""
        return self.name if self.named else f'{self.path.absolute().parent.name}/{self.name}'


def load_subjects(texts: Sequence[str], *, known: Mapping[str, Any], device: str) -> list[Subject]:
    """Load every network.

    Args:
        texts: ``[NAME=]PATH[#PART]`` each. NAME may be one of ``mkd_plugin.checkpoint.releases``, which then says which
            network the file is of; so does the name of a released file. PART is 'student', one of the file's own teachers,
            or the prefix of one of several networks.
        known: Options of networks whose files do not state them.
        device: Where to.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Two have the same name, a file cannot be read, or is of no ViT that is known.
    """
    requests = [Request(text) for text in texts]
    counts = Counter(request.name for request in requests)
    for request in requests:
        if counts[request.name] > 1:
            request.name = request.longer_name
    repeated = [name for name, count in Counter(request.name for request in requests).items() if count > 1]
    if repeated:
        raise ValueError(f'Several checkpoints are called {repeated}: name each of them, NAME=PATH.')
    return [load_subject(request, known, device) for request in requests]


def load_subject(request: Request, known: Mapping[str, Any], device: str) -> Subject:
    """Load one network."""
    path = request.path
    checkpoint = read_checkpoint(path, lazy=True)
    weights = without_wrapper(weights_of(checkpoint, path))
    check_transformer(weights, path)
    release = release_of(request)
    prefix = request.part or (release.prefix if release else None)
    about = provenance_of(checkpoint)
    if 'backbone' in about:
        prefix = {None: None, 'student': 'backbone.'}.get(prefix, prefix)
        prefix = f'teachers.{prefix}.network.' if prefix in about.get('teachers', []) else prefix
    found, converted = convert_weights(weights, path, prefix)
    stated = {**stated_options(checkpoint), **((release and release.network) or {})}
    options = network_options(converted.tensors, {**known, **stated})
    if options['in_channels'] != 3:
        raise ValueError(f'{path} wants images of {options["in_channels"]} channels; only RGB can be measured here.')
    network = VisionTransformer(**options)
    fill_network(network, checkpoint, path, prefix=found.prefix)
    statistics, notes = pixel_statistics(about, release, found.format.name)
    if not {'arch', 'num_heads'} & {*stated, *known}:
        heads = network.arch.num_heads
        notes.append(f'{heads} attention heads, by its width (state it with --network num_heads=…)')
    mean_C11, std_C11 = (torch.tensor(values, device=device).view(-1, 1, 1) / 255 for values in statistics)
    part = found.prefix or 'the whole file'
    identity = f'{sha256_of(path)} {part} {sorted(network.options.items())}'
    source = str(path) if request.part is None else f'{path}#{request.part}'
    network = network.to(device).eval()
    return Subject(request.name, source, identity, network, mean_C11, std_C11, found.format.title, tuple(notes))


def check_transformer(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError if a file is of a known network that has no tokens."""
    if not find_networks(weights) and guess_format(weights) == 'ResNet':
        raise ValueError(
            f'{path} is of a ResNet, which has neither attention nor tokens: nothing of this report can be measured. Give '
            'checkpoints of Vision Transformers.'
        )


def release_of(request: Request) -> Release | None:
    """The release that a file is said to be, or is called like."""
    if request.named and request.name in RELEASES:
        return RELEASES[request.name]
    return next((release for release in RELEASES.values() if release.file == request.path.name), None)


def pixel_statistics(
    about: Mapping[str, Any], release: Release | None, format_name: str
) -> tuple[tuple[Sequence[float], Sequence[float]], list[str]]:
    """Mean and standard deviation, 0 … 255, and what to say if they are a guess."""
    if release is not None:
        return release.statistics, [f'network and pixels as of the release {release.name}']
    if 'pixel_mean' in about:
        return (about['pixel_mean'], about['pixel_std']), []
    if format_name in ('clip', 'hf_clip', 'hf_clip_tower'):
        return CLIP, ["CLIP's pixel statistics, by its format"]
    return IMAGENET, ["ImageNet's pixel statistics: the file states none"]
