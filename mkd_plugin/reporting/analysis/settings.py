"""Settings and results of an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mkd_plugin.analysis.streaming import FLAVOURS
from mkd_plugin.version import __version__

# Measurement → the settings that its numbers depend on, besides network and images.
MEASUREMENTS: dict[str, tuple[str, ...]] = {
    'maps': ('queries', 'shown'),
    'attention': ('flavour',),
    'fourier': (),
    'variance': (),
    'token-spectrum': ('flavour',),
    'image-spectrum': (),
    'similarity': (),
    'hessian': (),
    'landscape': ('directions', 'landscape_size'),
}
CURVATURE = ('hessian', 'landscape')
DIRECTIONS = ('random', 'hessian')


@dataclass(frozen=True)
class Settings:
    """What is measured, and how. Raises ValueError for a value that is not allowed."""

    only: Sequence[str] = ()  #: names of measurements; empty for all, with curvature for small networks only
    flavour: str = 'cl-vs-mim'  #: or 'dbot': convention of the attention distance and of the spectrum of tokens
    images: int = 64
    batch: int = 16  #: images per batch
    #: patches whose attention is drawn, as (row, column) fractions of the image
    queries: Sequence[tuple[float, float]] = ((0.5, 0.5), (0.25, 0.25))
    shown: int = 2  #: number of images on which attention is drawn
    directions: str = 'random'  #: of the landscape: 'random', or 'hessian' for its top two eigenvectors
    landscape_size: int = 21  #: points along a direction, odd

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in MEASUREMENTS]
        if unknown:
            raise ValueError(f'--only {" ".join(unknown)}: unknown measurement. Choose from {list(MEASUREMENTS)}.')
        for option, allowed in (('flavour', FLAVOURS), ('directions', DIRECTIONS)):
            if getattr(self, option) not in allowed:
                raise ValueError(f'--{option} {getattr(self, option)}: use one of {list(allowed)}.')
        for option in ('images', 'batch', 'shown', 'landscape_size'):
            if getattr(self, option) < 1:
                raise ValueError(f'--{option.replace("_", "-")} {getattr(self, option)}: it must be at least 1.')
        if self.landscape_size % 2 == 0:
            raise ValueError(
                f'--landscape-size {self.landscape_size}: use an odd number, so that one point is the network.'
            )
        if not self.queries or not all(0 <= place < 1 for query in self.queries for place in query):
            raise ValueError(f'--queries {self.queries}: give ROW,COLUMN as fractions of the image, in [0, 1).')


@dataclass
class Report:
    """Everything that was measured; ``report.json`` holds the same."""

    models: dict[str, dict[str, Any]]  #: name → description of the network
    data: dict[str, Any]  #: description of the images
    settings: dict[str, Any]
    results: dict[str, dict[str, Any]]  #: model → measurement → numbers
    pairs: list[dict[str, Any]] = field(default_factory=list)  #: similarity of the first model to each other one
    failed: dict[str, dict[str, str]] = field(default_factory=dict)  #: model → measurement → reason
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)  #: model → measurement → why it was not tried
    version: str = __version__  #: of this package
