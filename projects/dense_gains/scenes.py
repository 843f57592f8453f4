"""Scenes of clothing and digits over photographs, in COCO's and ADE20K's formats.

One to three objects of twenty classes lie in each scene: Fashion-MNIST's articles, in grey tinted a little, and scikit-learn's
digits, in one colour. Pictures of objects and regions of photographs belong to one split each.

Shape suffixes: H, W the image; h, w a stamp; S pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from PIL import Image
from scipy.ndimage import binary_fill_holes
from sklearn.datasets import load_digits

from mkd_plugin.datasets.digits import split_scans
from projects.dense_gains.photographs import draw_background
from projects.digit_scenes.drawing import INK, Canvas, Floats, Scans, Scene, make_stamp, place, resize
from projects.digit_scenes.writing import write_scenes

ARTICLES = ('t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot')
CLASSES = (*ARTICLES, *'0123456789')
LAYOUT = 2  # version of the files; raise it when the same arguments give other files
NUM_OBJECTS = (1, 3)
ARTICLE_SIZES, DIGIT_SIZES = (24, 40), (18, 36)  # height before it is turned, pixels
SILHOUETTE = 0.08  # grey from which a pixel is part of an article
HELD_OUT = {
    'val': 5000,
    'train': 55_000,
}  # articles of Fashion-MNIST's training files; those of its test files are for test


def write_natural_scenes(
    root: Path, fashion: Path, *, side: int, seed: int, counts: dict[str, int], step: Callable[[], Any] = lambda: None
) -> Path:
    """Write scenes unless they are complete; ``counts`` is the number of scenes of 'train', 'val' and 'test'.

    Args:
        root: A folder that is new, empty, or holds the same scenes.
        fashion: Folder of Fashion-MNIST, which mmpretrain downloads if its files are missing.
        side: Of a scene, pixels.
        seed: Random seed.
        counts: Number of scenes of each split.
        step: Called after every scene.

    Raises:
        ValueError: The folder holds other files.
    """
    settings = dict(natural=LAYOUT, side=side, seed=seed, **counts)
    articles, digits = read_articles(fashion), read_digits()
    draws = {split: partial(draw_scene, split, side, articles[split], digits[split]) for split in counts}
    return write_scenes(root, settings, draws, CLASSES, step)


def read_articles(root: Path) -> dict[str, Scans]:
    """Read the articles of each split, (S, 28, 28) from 0 to 1."""
    init_default_scope('mmpretrain')
    parts = {}
    for split in ('train', 'test'):
        source = dict(data_root=str(root), split=split, test_mode=split == 'test', serialize_data=False, pipeline=[])
        entries = DATASETS.build(dict(type='FashionMNIST', **source)).data_list
        images = np.stack([np.asarray(entry['img']) for entry in entries]) / 255
        parts[split] = Scans(images, np.array([int(entry['gt_label']) for entry in entries]))
    whole, bound = parts['train'], len(parts['train'].labels) * HELD_OUT['train'] // sum(HELD_OUT.values())
    return {
        'train': Scans(whole.images[:bound], whole.labels[:bound]),
        'val': Scans(whole.images[bound:], whole.labels[bound:]),
        'test': parts['test'],
    }


def read_digits() -> dict[str, Scans]:
    """Read the scans of each split, (S, 8, 8) from 0 to 1: a third of those held out is for val, the rest for test."""
    digits = load_digits()
    members = split_scans(digits.target)
    third = len(members['val']) // 3
    chosen = {'train': members['train'], 'val': members['val'][:third], 'test': members['val'][third:]}
    return {split: Scans(digits.images[rows] / 16, digits.target[rows]) for split, rows in chosen.items()}


def draw_scene(split: str, side: int, articles: Scans, digits: Scans, rng: np.random.Generator) -> Scene:
    """Draw a scene of ``side`` pixels; an object is an article or a digit with the same probability."""
    canvas, labels = Canvas(draw_background(split, side, rng)), []
    ground_3 = canvas.image_HW3.mean((0, 1))
    wanted = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    while len(labels) < wanted:
        if rng.random() < 0.5:
            number = rng.integers(len(articles.labels))
            label = int(articles.labels[number])
            cover_hw, colour = make_article(articles.images[number], draw_size(ARTICLE_SIZES, rng), rng)
        else:
            number = rng.integers(len(digits.labels))
            label = len(ARTICLES) + int(digits.labels[number])
            cover_hw = make_stamp(digits.images[number], draw_size(DIGIT_SIZES, rng), rng)
            colour = draw_ink(ground_3, rng)
        if place(canvas, cover_hw, colour, rng, digit=True):
            labels.append(label)
    noisy = canvas.image_HW3 + rng.normal(0, 0.02, canvas.image_HW3.shape)
    masks_NHW = canvas.owner_HW == np.arange(len(labels))[:, None, None]
    return Scene((noisy.clip(0, 1) * 255).round().astype(np.uint8), labels, masks_NHW)


def draw_size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    """Draw a height, uniform in its logarithm."""
    return round(float(np.exp(rng.uniform(*np.log(sizes)))))


def make_article(picture: Floats, height: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Resize an article, turn it by up to 15° and crop it; return its coverage (h, w) and its colours (h, w, 3)."""
    width = max(round(height * float(rng.uniform(0.85, 1.15))), 1)
    silhouette = binary_fill_holes(picture >= SILHOUETTE).astype(np.float64)
    angle = float(rng.uniform(-15, 15))
    cover_hw, grey_hw = (
        np.asarray(
            Image.fromarray(resize(layer, (height, width)).astype(np.float32)).rotate(
                angle, Image.Resampling.BILINEAR, expand=True
            ),
            dtype=np.float64,
        ).clip(0, 1)
        for layer in (silhouette, picture)
    )
    rows, columns = (np.flatnonzero((cover_hw >= INK).any(axis)) for axis in (1, 0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    colour_hw3 = (0.1 + 0.9 * grey_hw[inside])[..., None] * rng.uniform(0.6, 1.0, 3)
    return cover_hw[inside], colour_hw3


def draw_ink(ground_3: Floats, rng: np.random.Generator) -> Floats:
    """Draw the colour of a digit: light on a dark background, dark on a light one."""
    level = rng.uniform(0.7, 0.95) if ground_3.mean() < 0.5 else rng.uniform(0.05, 0.25)
    return (level + rng.uniform(-0.15, 0.15, 3)).clip(0, 1)
