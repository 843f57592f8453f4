"""What a report measures, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mkd_plugin.analysis.checks import FLAVOURS

# Name → the settings that its numbers depend on, beside network and images.
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
    """Of a report.

    Attributes:
        only: Names of measurements; empty for all, curvature only of small networks.
        flavour: 'cl-vs-mim' or 'dbot': convention of the attention distance and of the token-level spectrum.
        images: How many.
        batch: How many at once.
        queries: Places of the patches whose attention is drawn, as (row, column) fractions of the image.
        shown: On how many images they are drawn.
        directions: Of the landscape: 'random', or 'hessian' for its top two eigenvectors.
        landscape_size: Points along a direction, odd.

    Raises:
        ValueError: A value that is not allowed.
    """

    only: Sequence[str] = ()
    flavour: str = 'cl-vs-mim'
    images: int = 64
    batch: int = 16
    queries: Sequence[tuple[float, float]] = ((0.5, 0.5), (0.25, 0.25))
    shown: int = 2
    directions: str = 'random'
    landscape_size: int = 21

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in MEASUREMENTS]
        if unknown:
            raise ValueError(
                f'--only {" ".join(unknown)}: there is no such measurement. Choose from {list(MEASUREMENTS)}.'
            )
        for option, allowed in (('flavour', FLAVOURS), ('directions', DIRECTIONS)):
            if getattr(self, option) not in allowed:
                raise ValueError(f'--{option} {getattr(self, option)}: use one of {list(allowed)}.')
        for option in ('images', 'batch', 'shown', 'landscape_size'):
            if getattr(self, option) < 1:
                raise ValueError(f'--{option.replace("_", "-")} {getattr(self, option)}: it must be at least 1.')
        if self.landscape_size % 2 == 0:
            raise ValueError(
                f'--landscape-size {self.landscape_size}: it must be odd, to have the network in its middle.'
            )
        if not self.queries or not all(0 <= place < 1 for query in self.queries for place in query):
            raise ValueError(f'--queries {self.queries}: give ROW,COLUMN as fractions of the image, in [0, 1).')
