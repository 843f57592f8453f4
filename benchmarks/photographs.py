"""JPEG files that cost as much to decode as ImageNet's, made of what is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIZE, QUALITY, GRAIN = (500, 375), 95, 7.0  # pixels; together they give files of about 110 kB, ImageNet's mean


def write_photographs(folder: Path, count: int) -> float:
    """Write JPEGs: parts of scikit-learn's two photographs at random, mirrored or not, with the grain of a sensor.

    Args:
        folder: Where to; one class folder is made in it, which torchvision wants.
        count: How many.

    Returns:
        Their mean size in bytes.
    """
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    generator = np.random.default_rng(0)
    (folder / 'class').mkdir(parents=True)
    for number in range(count):
        photo, width = photos[number % 2], generator.integers(400, 569)
        height = width * SIZE[1] // SIZE[0]
        left, top = generator.integers(photo.width - width + 1), generator.integers(photo.height - height + 1)
        part = photo.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        if generator.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        grainy = np.asarray(part) + generator.normal(0, GRAIN, (SIZE[1], SIZE[0], 1))
        picture = Image.fromarray(grainy.clip(0, 255).astype(np.uint8))
        picture.save(folder / 'class' / f'{number:05d}.jpg', quality=QUALITY)
    sizes = [path.stat().st_size for path in folder.rglob('*.jpg')]
    return sum(sizes) / len(sizes)
