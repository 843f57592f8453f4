"""One scene: real digits and clutter, painted from back to front, and which pixels of every digit can be seen.

Shapes: H, W the picture, h, w a stamp, N digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats: TypeAlias = npt.NDArray[np.float64]

SIDES = (96, 160)  # of a picture, pixels
SIZES = (18, 56)  # of a digit, pixels
NUM_DIGITS = (3, 9)
MIN_VISIBLE = 0.4  # of a digit's ink
INK = 0.5  # a pixel belongs to what covers at least this much of it
NOTHING = -1


class Scans(NamedTuple):
    """The scans that a scene is made of.

    Attributes:
        images: (S, 8, 8), ink from 0 to 1.
        labels: (S,) digits.
    """

    images: Floats
    labels: npt.NDArray[np.int_]


class Scene(NamedTuple):
    """A picture and its objects, from back to front.

    Attributes:
        image_HW3: RGB.
        digits: N labels, 0 … 9.
        masks_NHW: The pixels of each that can be seen; no pixel is in two.
    """

    image_HW3: npt.NDArray[np.uint8]
    digits: list[int]
    masks_NHW: npt.NDArray[np.bool_]


class Canvas:
    """A picture that knows what is on top at every pixel.

    Attributes:
        image_HW3: RGB from 0 to 1.
        owner_HW: Number of the digit on top, ``NOTHING`` where there is none.
        inks: Pixels of each digit, seen or not.
    """

    def __init__(self, image_HW3: Floats) -> None:
        self.image_HW3 = image_HW3
        self.owner_HW = np.full(image_HW3.shape[:2], NOTHING)
        self.inks: list[int] = []

    def paint(self, cover_hw: Floats, corner: tuple[int, int], colour_3: Floats, *, digit: bool) -> bool:
        """Paint a stamp on top, unless a digit below would be (nearly) hidden by it.

        Args:
            cover_hw: How much of each pixel it covers, 0 to 1.
            corner: Row and column of its upper left pixel; all of it must lie in the picture.
            colour_3: RGB from 0 to 1.
            digit: Whether it is a digit; clutter is nothing to be found, but hides what is below as well.

        Returns:
            False if every digit's visible share would not have stayed at ``MIN_VISIBLE`` or more: nothing is painted.
        """
        area = tuple(slice(start, start + side) for start, side in zip(corner, cover_hw.shape, strict=True))
        owner_HW = self.owner_HW.copy()
        owner_HW[area][cover_hw >= INK] = len(self.inks) if digit else NOTHING
        seen = np.bincount(owner_HW[owner_HW != NOTHING], minlength=len(self.inks))
        if any(visible < MIN_VISIBLE * ink for visible, ink in zip(seen, self.inks, strict=False)):
            return False
        if digit:
            self.inks.append(int((cover_hw >= INK).sum()))
        self.owner_HW = owner_HW
        self.image_HW3[area] += cover_hw[..., None] * (colour_3 - self.image_HW3[area])
        return True


def draw_scene(scans: Scans, rng: np.random.Generator) -> Scene:
    """Draw one scene; the same scans and generator give the same picture to the last bit.

    ``SIDES``, ``SIZES`` and ``NUM_DIGITS`` are the ranges of its sides, of the digits' sides and of their number. Digits
    are rotated by up to 15° and squeezed or stretched by up to 15 %, lie over each other, and are chalk of several colours on
    a dark, textured background. Lines and small pieces of scans are strewn behind and thin lines before them. A place where
    something would leave less than ``MIN_VISIBLE`` of a digit is not taken, so nothing unlabelled is left of one.
    """
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    canvas = Canvas(paper(rng, height, width))
    ground_3 = canvas.image_HW3.mean((0, 1))
    for _ in range(rng.integers(2, 7)):
        cover_hw = piece(scans, rng) if rng.random() < 0.5 else line(rng, thickest=4)
        strew(canvas, cover_hw, chalk(rng, ground_3, 0.1), rng, digit=False)
    digits = []
    for _ in range(rng.integers(NUM_DIGITS[0], NUM_DIGITS[1] + 1)):
        number = rng.integers(len(scans.labels))
        side = round(float(np.exp(rng.uniform(*np.log(SIZES)))))
        if strew(canvas, stamp(scans.images[number], side, rng), chalk(rng, ground_3, 0.3), rng, digit=True):
            digits.append(int(scans.labels[number]))
    for _ in range(rng.integers(0, 3)):
        strew(canvas, line(rng, thickest=2), chalk(rng, ground_3, 0.1), rng, digit=False)
    noisy = canvas.image_HW3 + rng.normal(0, rng.uniform(0, 0.05), canvas.image_HW3.shape)
    masks_NHW = canvas.owner_HW == np.arange(len(digits))[:, None, None]
    return Scene((noisy.clip(0, 1) * 255).round().astype(np.uint8), digits, masks_NHW)


def strew(canvas: Canvas, cover_hw: Floats, colour_3: Floats, rng: np.random.Generator, *, digit: bool) -> bool:
    """Paint a stamp at one of ten random places; False if none of them would do."""
    room = [side - own for side, own in zip(canvas.owner_HW.shape, cover_hw.shape, strict=True)]
    if min(room) < 0:
        return False
    for _ in range(10):
        corner = (int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)))
        if canvas.paint(cover_hw, corner, colour_3, digit=digit):
            return True
    return False


def paper(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A background: one dark colour and a smooth texture, (H, W, 3) from 0 to 1."""
    coarse = rng.normal(0, rng.uniform(0.01, 0.06), (3, height // 16, width // 16))
    texture = [resize(channel, (height, width)) for channel in coarse]
    return (rng.uniform(0.05, 0.35) + rng.uniform(-0.05, 0.05, 3) + np.stack(texture, axis=-1)).clip(0, 1)


def stamp(scan: Floats, side: int, rng: np.random.Generator) -> Floats:
    """A scan, ``side`` pixels high before it is rotated, cut to its ink, (h, w)."""
    upright = resize(scan, (side, max(round(side * float(rng.uniform(0.85, 1.15))), 1)))
    rotated = Image.fromarray(upright.astype(np.float32)).rotate(
        float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC, expand=True
    )
    # eight grey steps a stroke become two or three at its edge
    cover_hw = ((np.asarray(rotated, dtype=np.float64) - 0.25) * 2).clip(0, 1)
    rows, columns = (np.flatnonzero((cover_hw >= INK).any(axis)) for axis in (1, 0))
    return cover_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def piece(scans: Scans, rng: np.random.Generator) -> Floats:
    """A third by a third of a scan: strokes as a digit has them, but too little to be one, (h, w)."""
    whole_hw = stamp(scans.images[rng.integers(len(scans.labels))], int(rng.integers(*SIZES)), rng)
    height, width = (max(side // 3, 1) for side in whole_hw.shape)
    top, left = (int(rng.integers(side - own + 1)) for side, own in zip(whole_hw.shape, (height, width), strict=True))
    return whole_hw[top : top + height, left : left + width]


def line(rng: np.random.Generator, *, thickest: int) -> Floats:
    """A straight line of up to 80 pixels, (h, w)."""
    height, width = (int(side) for side in rng.integers(8, 81, 2))
    canvas = Image.new('F', (width, height))
    ends = [(0, 0), (width - 1, height - 1)] if rng.random() < 0.5 else [(0, height - 1), (width - 1, 0)]
    ImageDraw.Draw(canvas).line(ends, fill=1.0, width=int(rng.integers(1, thickest + 1)))
    return np.asarray(canvas, dtype=np.float64)


def chalk(rng: np.random.Generator, ground_3: Floats, least: float) -> Floats:
    """A colour that is brighter than the background by ``least`` to 0.65, with a tint, RGB from 0 to 1."""
    return (ground_3.mean() + rng.uniform(least, 0.65) + rng.uniform(-0.15, 0.15, 3)).clip(0, 1)


def resize(values_hw: Floats, shape: Sequence[int]) -> Floats:
    """Bicubic, (h, w) → ``shape``."""
    image = Image.fromarray(values_hw.astype(np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float64)
