"""What is measured of a network, or of two: each goes over the images in batches and gives plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mkd_plugin.analysis import (
    AttentionStatistics,
    FeatureMapVariance,
    FourierAmplitude,
    ImageSpectrum,
    LinearCKA,
    PerLayer,
    SimilarityTable,
    TokenSpectrum,
    TopRatio,
    run_watched,
)
from mkd_plugin.analysis.checks import patches_of
from mkd_plugin.analysis.report.images import ImageSet
from mkd_plugin.analysis.report.settings import Settings
from mkd_plugin.interop.subjects import Subject

SIMILARITY_LAYERS = 13  # at most; one covariance of two layers is 4.7 MB at width 768
SIMILARITY_SIDE = 7  # cells per side at most: an example is the mean token of a cell


def nothing() -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class Job:
    """A network, and the images to measure it on.

    Attributes:
        subject: The network.
        images: The images.
        settings: Of the report.
        tick: Called after every batch, or step.
    """

    subject: Subject
    images: ImageSet
    settings: Settings
    tick: Callable[[], None] = field(default=nothing)

    @property
    def places(self) -> dict[str, Any]:
        """What accumulators want to know of the network's tokens."""
        network = self.subject.network
        return dict(grid=network.grid, num_prefix=network.num_prefix)

    def batches(self) -> Iterator[Tensor]:
        """The images as the network wants them."""
        for batch in self.images.batches(self.subject, self.settings.batch):
            yield batch
            self.tick()

    def label(self, layer: str) -> str:
        """A layer's name in messages."""
        return f'{self.subject.name}, {layer}'


def measure_attention(job: Job) -> dict[str, Any]:
    """Distance, entropy and NMI of every block and head."""
    per_layer = PerLayer(
        lambda layer: AttentionStatistics(
            patch_size=job.subject.network.patch_size,
            flavour=job.settings.flavour,
            name=job.label(layer),
            **job.places,
        )
    )
    for batch in job.batches():
        run_watched(job.subject.network, batch, on_attention=per_layer)
    return {layer: asdict(summary) for layer, summary in per_layer.results().items()}


def measure_tokens(job: Job, make: Callable[..., Any], *, inside: bool) -> dict[str, Any]:
    """Whatever an accumulator measures of the tokens that enter the first block, and of every block's.

    Args:
        job: The network and the images.
        make: The accumulator's class.
        inside: Also of the tokens between a block's attention and its perceptron.

    Returns:
        Layer → result; a summary as a dict.
    """
    per_layer = PerLayer(lambda layer: make(name=job.label(layer), **job.places))

    def take(layer: str, tokens_BND: Tensor) -> None:
        if inside or not layer.startswith('middle:'):
            per_layer(layer, tokens_BND)

    for batch in job.batches():
        run_watched(job.subject.network, batch, on_tokens=take)
    results = per_layer.results()
    return {layer: asdict(found) if hasattr(found, 'images') else found for layer, found in results.items()}


def measure_fourier(job: Job) -> dict[str, Any]:
    """Relative log amplitude along the diagonal."""
    return measure_tokens(job, FourierAmplitude, inside=True)


def measure_variance(job: Job) -> dict[str, Any]:
    """Variance of the feature maps."""
    return measure_tokens(job, FeatureMapVariance, inside=True)


def measure_token_spectrum(job: Job) -> dict[str, Any]:
    """Singular values of each image's tokens, by the flavour's definition."""
    if job.settings.flavour == 'dbot':
        return {'flavour': 'dbot', 'layers': measure_tokens(job, TopRatio, inside=False)}
    return {'flavour': 'cl-vs-mim', 'layers': measure_tokens(job, TokenSpectrum, inside=False)}


def measure_image_spectrum(job: Job) -> dict[str, Any]:
    """Singular values of the images' mean tokens."""
    return measure_tokens(job, ImageSpectrum, inside=False)


def measure_maps(job: Job) -> dict[str, Any]:
    """Attention of chosen query patches, mean over heads, in the first, middle and last block, of a few images."""
    network = job.subject.network
    (height, width), depth = network.grid, network.arch.depth
    queries = [(int(row * height), int(column * width)) for row, column in job.settings.queries]
    rows = [network.num_prefix + row * width + column for row, column in queries]
    wanted = [f'block:{index}' for index in dict.fromkeys((0, depth // 2, depth - 1))]
    maps: dict[str, list[Any]] = {layer: [] for layer in wanted}

    def take(layer: str, attention_BHNN: Tensor) -> None:
        if layer in maps:
            chosen_BQL = attention_BHNN[:, :, rows, network.num_prefix :].mean(dim=1)
            maps[layer] += chosen_BQL.reshape(-1, len(rows), height, width).tolist()

    shown = job.images.evenly(job.settings.shown)
    pixels = job.images.read(shown, network.image_hw).to(job.subject.device)
    run_watched(network, job.subject.normalise(pixels), on_attention=take)
    return {'images': shown, 'queries': queries, 'layers': maps}


def compare(job: Job, other: Job | None = None) -> dict[str, Any]:
    """Linear CKA of all pairs of layers, within a network or between two that see the same images.

    An example is the mean token of a cell of a grid of at most 7 × 7 that both networks' grids are averaged to.
    """
    jobs = [job] if other is None else [job, other]
    grids = [each.subject.network.grid for each in jobs]
    height, width = (min(SIMILARITY_SIDE, *(grid[side] for grid in grids)) for side in (0, 1))
    cells = (height, width)
    cka = LinearCKA()
    for batches in zip(*(each.images.batches(each.subject, each.settings.batch) for each in jobs), strict=True):
        cka.update(*(cell_features(each, batch, cells) for each, batch in zip(jobs, batches, strict=True)))
        job.tick()
    table: SimilarityTable = cka.result()
    return {**asdict(table), 'cells': cells}


def cell_features(job: Job, batch: Tensor, cells: tuple[int, int]) -> dict[str, Tensor]:
    """Layer → mean tokens of cells, (B · cells, D)."""
    found: dict[str, Tensor] = {}
    depth = job.subject.network.arch.depth
    every = ['input:0', *(f'block:{index}' for index in range(depth))]
    count = min(SIMILARITY_LAYERS, len(every))
    wanted = {every[round(i * depth / max(count - 1, 1))] for i in range(count)}

    def take(layer: str, tokens_BND: Tensor) -> None:
        if layer in wanted:
            patches_BLD = patches_of(tokens_BND, name=job.label(layer), **job.places)
            maps_BDhw = patches_BLD.mT.reshape(len(patches_BLD), -1, *job.places['grid'])
            found[layer] = F.adaptive_avg_pool2d(maps_BDhw, cells).flatten(2).mT.flatten(0, 1)

    run_watched(job.subject.network, batch, on_tokens=take)
    return found
