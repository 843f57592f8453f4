"""Draw one scene: real digits and clutter, painted from back to front, with the visible pixels of each digit.

Shape suffixes: H, W the image; h, w a stamp; N digits; S scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats: TypeAlias = npt.NDArray[np.float64]

SIDES = (96, 160)  # of an image, pixels
SIZES = (18, 56)  # of a digit, pixels
NUM_DIGITS = (3, 9)
MIN_VISIBLE = 0.4  # fraction of a digit's ink pixels
INK = 0.5  # a stamp owns the pixels that it covers at least this much
NOTHING = -1


class Scans(NamedTuple):
    """Scans of single digits.

    Attributes:
        images: (S, 8, 8), ink from 0 to 1.
        labels: (S,) digits.
    """

    images: Floats
    labels: npt.NDArray[np.int_]


class Scene(NamedTuple):
    """An image and its objects, from back to front.

    Attributes:
        image_HW3: RGB.
        digits: N labels, 0 … 9.
        masks_NHW: Visible pixels of each digit; the masks are disjoint.
    """

    image_HW3: npt.NDArray[np.uint8]
    digits: list[int]
    masks_NHW: npt.NDArray[np.bool_]


class Canvas:
    """An image that records which digit is on top at every pixel.

    Attributes:
        image_HW3: RGB from 0 to 1.
        owner_HW: Index of the digit on top, ``NOTHING`` where there is none.
        inks: Number of pixels of each digit, visible or not.
    """

    def __init__(self, image_HW3: Floats) -> None:
        self.image_HW3 = image_HW3
        self.owner_HW = np.full(image_HW3.shape[:2], NOTHING)
        self.inks: list[int] = []

    def paint(self, cover_hw: Floats, corner: tuple[int, int], colour_3: Floats, *, digit: bool) -> bool:
        """Paint a stamp on top, unless that would hide too much of a digit below.

        Args:
            cover_hw: Coverage of each pixel, 0 to 1.
            corner: Row and column of the upper left pixel; the whole stamp must lie in the image.
            colour_3: RGB from 0 to 1, or one for each pixel, (h, w, 3).
            digit: Whether the stamp is a digit; clutter is not annotated but hides what is below it.

        Returns:
            Whether the stamp was painted: not if less than ``MIN_VISIBLE`` of some digit would remain visible.
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
    """Draw one scene; the same scans and generator state give a bit-identical image.

    Image sides, digit sizes and the number of digits are drawn from ``SIDES``, ``SIZES`` and ``NUM_DIGITS``. Digits are
    rotated by up to 15°, scaled in width by up to 15 %, overlap, and have light colours on a dark, textured background.
    Lines and small pieces of scans lie behind the digits and thin lines in front of them. No stamp leaves less than
    ``MIN_VISIBLE`` of a digit visible, so every digit in the image is annotated.
    """
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    canvas = Canvas(draw_background(rng, height, width))
    ground_3 = canvas.image_HW3.mean((0, 1))
    for _ in range(rng.integers(2, 7)):
        cover_hw = cut_piece(scans, rng) if rng.random() < 0.5 else draw_line(rng, thickest=4)
        place(canvas, cover_hw, draw_colour(rng, ground_3, 0.1), rng, digit=False)
    digits = []
    for _ in range(rng.integers(NUM_DIGITS[0], NUM_DIGITS[1] + 1)):
        number = rng.integers(len(scans.labels))
        side = round(float(np.exp(rng.uniform(*np.log(SIZES)))))
        if place(canvas, make_stamp(scans.images[number], side, rng), draw_colour(rng, ground_3, 0.3), rng, digit=True):
            digits.append(int(scans.labels[number]))
    for _ in range(rng.integers(0, 3)):
        place(canvas, draw_line(rng, thickest=2), draw_colour(rng, ground_3, 0.1), rng, digit=False)
    noisy = canvas.image_HW3 + rng.normal(0, rng.uniform(0, 0.05), canvas.image_HW3.shape)
    masks_NHW = canvas.owner_HW == np.arange(len(digits))[:, None, None]
    return Scene((noisy.clip(0, 1) * 255).round().astype(np.uint8), digits, masks_NHW)


def place(canvas: Canvas, cover_hw: Floats, colour_3: Floats, rng: np.random.Generator, *, digit: bool) -> bool:
    """Try to paint a stamp at up to ten random places; return whether it was painted."""
    room = [side - own for side, own in zip(canvas.owner_HW.shape, cover_hw.shape, strict=True)]
    if min(room) < 0:
        return False
    for _ in range(10):
        corner = (int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1)))
        if canvas.paint(cover_hw, corner, colour_3, digit=digit):
            return True
    return False


def draw_background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Draw a background: one dark colour and a smooth texture, (H, W, 3) from 0 to 1."""
    coarse = rng.normal(0, rng.uniform(0.01, 0.06), (3, height // 16, width // 16))
    texture = [resize(channel, (height, width)) for channel in coarse]
    return (rng.uniform(0.05, 0.35) + rng.uniform(-0.05, 0.05, 3) + np.stack(texture, axis=-1)).clip(0, 1)


def make_stamp(scan: Floats, side: int, rng: np.random.Generator) -> Floats:
    """Resize a scan to ``side`` pixels in height, rotate it and crop it to its ink, (h, w)."""
    upright = resize(scan, (side, max(round(side * float(rng.uniform(0.85, 1.15))), 1)))
    rotated = Image.fromarray(upright.astype(np.float32)).rotate(
        float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC, expand=True
    )
    # raise the contrast, so that a stroke has two or three grey levels at its edge
    cover_hw = ((np.asarray(rotated, dtype=np.float64) - 0.25) * 2).clip(0, 1)
    rows, columns = (np.flatnonzero((cover_hw >= INK).any(axis)) for axis in (1, 0))
    return cover_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def cut_piece(scans: Scans, rng: np.random.Generator) -> Floats:
    """Cut a third by a third of a stamp: strokes like a digit's, but too small to be recognised, (h, w)."""
    whole_hw = make_stamp(scans.images[rng.integers(len(scans.labels))], int(rng.integers(*SIZES)), rng)
    height, width = (max(side // 3, 1) for side in whole_hw.shape)
    top, left = (int(rng.integers(side - own + 1)) for side, own in zip(whole_hw.shape, (height, width), strict=True))
    return whole_hw[top : top + height, left : left + width]


def draw_line(rng: np.random.Generator, *, thickest: int) -> Floats:
    """Draw a straight line of up to 80 pixels a side, (h, w)."""
    height, width = (int(side) for side in rng.integers(8, 81, 2))
    canvas = Image.new('F', (width, height))
    ends = [(0, 0), (width - 1, height - 1)] if rng.random() < 0.5 else [(0, height - 1), (width - 1, 0)]
    ImageDraw.Draw(canvas).line(ends, fill=1.0, width=int(rng.integers(1, thickest + 1)))
    return np.asarray(canvas, dtype=np.float64)


def draw_colour(rng: np.random.Generator, ground_3: Floats, least: float) -> Floats:
    """Draw an RGB colour from 0 to 1 that is brighter than the background by ``least`` to 0.65."""
    return (ground_3.mean() + rng.uniform(least, 0.65) + rng.uniform(-0.15, 0.15, 3)).clip(0, 1)


def resize(values_hw: Floats, shape: Sequence[int]) -> Floats:
    """Resize (h, w) to ``shape``, bicubic."""
    image = Image.fromarray(values_hw.astype(np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float64)
