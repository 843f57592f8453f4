"""Measurements of one network, or of two, on a set of images; each returns JSON values and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets.folder import IMG_EXTENSIONS

from mkd_plugin.analysis import AttentionStatistics, LinearCKA, PerLayer, TokenSpectrum, TopRatio, run_watched
from mkd_plugin.analysis.streaming import patches_of
from mkd_plugin.evaluation.images import read_named
from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.reporting.analysis.settings import Settings

SIMILARITY_LAYERS = 13  # at most; one covariance of two layers is 4.7 MB at width 768
SIMILARITY_SIDE = 7  # cells per side at most: an example is the mean token of a cell


class ImageSet:
    """Up to ``count`` images of a folder and its sub-folders, evenly spread over its sorted files.

    ``labels`` are indices in ``classes``, the names of the folders below ``root``; None without them. ``available`` is the
    number of images in the folder, and ``digest`` the SHA-256 of the chosen names and contents.
    """

    def __init__(self, root: str | Path, count: int) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f'--data {root}: no such folder. Give a folder of images.')
        found = sorted(
            path for path in self.root.rglob('*') if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
        )
        if not found:
            raise ValueError(f'--data {root}: no image in it or below (looked for {", ".join(IMG_EXTENSIONS)}).')
        self.available = len(found)
        places = np.linspace(0, len(found), min(count, len(found)), endpoint=False).astype(int)
        self.files = [found[place] for place in places]
        names = [file.relative_to(self.root) for file in self.files]
        parts = [file.relative_to(self.root).parts for file in found]
        self.classes = sorted({part[0] for part in parts})
        nested = all(len(part) > 1 for part in parts) and len(self.classes) > 1
        self.labels = [self.classes.index(name.parts[0]) for name in names] if nested else None
        digest = hashlib.sha256()
        for file, name in zip(self.files, names, strict=True):
            digest.update(f'{name.as_posix()}\n'.encode() + hashlib.sha256(file.read_bytes()).digest())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def evenly(self, count: int) -> list[int]:
        """Indices of a few images, evenly spread."""
        return [i * len(self) // min(count, len(self)) for i in range(min(count, len(self)))]

    def read(self, indices: Sequence[int], image_hw: tuple[int, int]) -> Tensor:
        """RGB in [0, 1], (B, 3, H, W): scaled to cover the size (bicubic), then cropped to the centre."""
        pictures = []
        for index in indices:
            whole = Image.fromarray(read_named(self.files[index]))
            picture = ImageOps.fit(whole, image_hw[::-1], Image.Resampling.BICUBIC)
            pictures.append(np.asarray(picture))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255

    def batches(self, subject: OpenedModel, size: int) -> Iterator[Tensor]:
        """All images, normalised for a network and on its device, in batches."""
        for first in range(0, len(self), size):
            indices = range(first, min(first + size, len(self)))
            yield subject.normalise(self.read(indices, subject.network.image_hw).to(subject.device))


@dataclass(frozen=True)
class Probe:
    """A network and the images to measure it on."""

    subject: OpenedModel
    images: ImageSet
    settings: Settings
    tick: Callable[[], None] = lambda: None  #: called after every batch or step

    @property
    def layout(self) -> dict[str, Any]:
        """Arguments of accumulators: the layout of the network's tokens."""
        network = self.subject.network
        return dict(grid=network.grid, num_prefix=network.num_prefix)

    def batches(self) -> Iterator[Tensor]:
        """All images, in batches."""
        for batch in self.images.batches(self.subject, self.settings.batch):
            yield batch
            self.tick()

    def label(self, layer: str) -> str:
        return f'{self.subject.name}, {layer}'


def measure_attention(probe: Probe) -> dict[str, Any]:
    """Distance, entropy and NMI of every block and head."""
    options = dict(patch_size=probe.subject.network.patch_size, flavour=probe.settings.flavour, **probe.layout)
    per_layer = PerLayer(lambda layer: AttentionStatistics(name=probe.label(layer), **options))
    for batch in probe.batches():
        run_watched(probe.subject.network, batch, on_attention=per_layer)
    return {layer: asdict(summary) for layer, summary in per_layer.results().items()}


def measure_tokens(probe: Probe, *, make: Callable[..., Any], inside: bool = False) -> dict[str, Any]:
    """Measure the tokens that enter the first block and leave each block; ``inside``: also after each attention."""
    per_layer = PerLayer(lambda layer: make(name=probe.label(layer), **probe.layout))

    def take(layer: str, tokens_BND: Tensor) -> None:
        if inside or not layer.startswith('middle:'):
            per_layer(layer, tokens_BND)

    for batch in probe.batches():
        run_watched(probe.subject.network, batch, on_tokens=take)
    results = per_layer.results()
    return {layer: asdict(found) if hasattr(found, 'images') else found for layer, found in results.items()}


def measure_token_spectrum(probe: Probe) -> dict[str, Any]:
    """Singular values of each image's tokens, as the flavour defines them."""
    flavour = probe.settings.flavour
    kind = TopRatio if flavour == 'dbot' else TokenSpectrum
    return {'flavour': flavour, 'layers': measure_tokens(probe, make=kind)}


def measure_maps(probe: Probe) -> dict[str, Any]:
    """Attention of chosen query patches, mean over heads, in the first, middle and last block, for a few images."""
    network = probe.subject.network
    (height, width), depth = network.grid, network.arch.depth
    queries = [(int(row * height), int(column * width)) for row, column in probe.settings.queries]
    rows = [network.num_prefix + row * width + column for row, column in queries]
    maps: dict[str, list[Any]] = {f'block:{index}': [] for index in dict.fromkeys((0, depth // 2, depth - 1))}

    def take(layer: str, attention_BHNN: Tensor) -> None:
        if layer in maps:
            chosen_BQL = attention_BHNN[:, :, rows, network.num_prefix :].mean(dim=1)
            maps[layer] += chosen_BQL.reshape(-1, len(rows), height, width).tolist()

    shown = probe.images.evenly(probe.settings.shown)
    pixels = probe.images.read(shown, network.image_hw).to(probe.subject.device)
    run_watched(network, probe.subject.normalise(pixels), on_attention=take)
    return {'images': shown, 'queries': queries, 'layers': maps}


def measure_similarity(probe: Probe, other: Probe | None = None) -> dict[str, Any]:
    """Linear CKA of all pairs of layers, within a network or between two that see the same images.

    An example is the mean token of a cell of a grid of at most 7 × 7 to which the grids of both networks are averaged.
    """
    probes = [probe] if other is None else [probe, other]
    grids = [each.subject.network.grid for each in probes]
    height, width = (min(SIMILARITY_SIDE, *(grid[side] for grid in grids)) for side in (0, 1))
    cka = LinearCKA()
    for batches in zip(*(each.images.batches(each.subject, each.settings.batch) for each in probes), strict=True):
        cells = (cell_features(each, batch, (height, width)) for each, batch in zip(probes, batches, strict=True))
        cka.update(*cells)
        probe.tick()
    return {**asdict(cka.result()), 'cells': (height, width)}


def cell_features(probe: Probe, batch: Tensor, cells: tuple[int, int]) -> dict[str, Tensor]:
    """Layer → mean tokens of the cells, (B · cells, D)."""
    found: dict[str, Tensor] = {}
    depth = probe.subject.network.arch.depth
    every = ['input:0', *(f'block:{index}' for index in range(depth))]
    count = min(SIMILARITY_LAYERS, len(every))
    wanted = {every[round(i * depth / max(count - 1, 1))] for i in range(count)}

    def take(layer: str, tokens_BND: Tensor) -> None:
        if layer in wanted:
            patches_BLD = patches_of(tokens_BND, name=probe.label(layer), **probe.layout)
            maps_BDhw = patches_BLD.mT.reshape(len(patches_BLD), -1, *probe.layout['grid'])
            found[layer] = F.adaptive_avg_pool2d(maps_BDhw, cells).flatten(2).mT.flatten(0, 1)

    run_watched(probe.subject.network, batch, on_tokens=take)
    return found
