"""Natural backgrounds: photographs that installed packages ship, each cut into a region for every split.

Shape suffixes: H, W an image.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from projects.digit_scenes.drawing import Floats

SPLITS = {
    'train': (0.0, 0.5),
    'val': (0.5, 0.7),
    'test': (0.7, 1.0),
}  # columns of a photograph, as fractions of its width
SIDES = (60, 90)  # of the square that a background is cut from, pixels; 90 is what the narrowest region has


class Photograph(NamedTuple):
    """A photograph: where it is, and under what terms."""

    package: str
    file: str
    licence: str


PHOTOGRAPHS = (
    Photograph('sklearn', 'datasets/images/china.jpg', 'CC BY 2.0, danielbuechele'),
    Photograph('sklearn', 'datasets/images/flower.jpg', 'CC BY 2.0, vultilion'),
    Photograph(
        'matplotlib', 'mpl-data/sample_data/grace_hopper.jpg', 'the package names none; a portrait by the US Navy'
    ),
    Photograph('skimage', 'data/astronaut.png', 'public domain, NASA'),
    Photograph('skimage', 'data/rocket.jpg', 'public domain, SpaceX'),
    Photograph('skimage', 'data/coffee.png', 'CC0, Rachel Michetti'),
    Photograph('skimage', 'data/chelsea.png', 'CC0, Stefan van der Walt'),
    Photograph('skimage', 'data/brick.png', 'CC0, CC0Textures'),
    Photograph('skimage', 'data/grass.png', 'CC0, as skimage says'),
    Photograph('skimage', 'data/gravel.png', 'CC0, CC0Textures'),
)


@lru_cache
def read_photograph(photograph: Photograph) -> npt.NDArray[np.uint8]:
    """Read a photograph, (H, W, 3). Raises ValueError if its package is not installed, or has no such file."""
    try:
        with (files(photograph.package) / photograph.file).open('rb') as file:
            return np.asarray(Image.open(file).convert('RGB'))
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(
            f'{photograph.package} does not give {photograph.file}: install the packages of requirements/constraints.txt '
            '(skimage is scikit-image, which comes with mmdet).'
        ) from error


def region(photograph_HW3: npt.NDArray[np.uint8], split: str) -> npt.NDArray[np.uint8]:
    """Return the columns of a photograph that belong to a split."""
    first, last = (round(photograph_HW3.shape[1] * edge) for edge in SPLITS[split])
    return photograph_HW3[:, first:last]


def draw_background(split: str, side: int, rng: np.random.Generator) -> Floats:
    """Cut a square from a random photograph's region of a split, (side, side, 3) from 0 to 1.

    Half of them are mirrored, and their brightness is changed by up to a quarter.
    """
    own = region(read_photograph(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]), split)
    cut = int(rng.integers(SIDES[0], SIDES[1] + 1))
    top, left = (int(rng.integers(length - cut + 1)) for length in own.shape[:2])
    square = Image.fromarray(own[top : top + cut, left : left + cut])  # cut first: resizing mixes neighbouring pixels
    image_HW3 = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    mirrored = image_HW3[:, ::-1] if rng.random() < 0.5 else image_HW3
    return (mirrored * rng.uniform(0.75, 1.25)).clip(0, 1)
