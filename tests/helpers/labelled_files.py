"""Write tiny image folders and checkpoints of tiny networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers.networks import VIT
from mkd_plugin.models.students import VisibleViT


def write_images(
    root: Path, name: str, classes: Sequence[str] = ('ant', 'bee', 'cat'), count: int = 4, side: int = 20
) -> Path:
    """Write ``count`` noisy images per class into ``root/name/<class>``; each class has its own colour."""
    generator = np.random.default_rng(len(name))
    for index, label in enumerate(classes):
        folder = root / name / label
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 120, (side, side, 3))
            pixels[..., index % 3] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    return root / name


def write_student(root: Path, name: str, seed: int = 0) -> Path:
    """Write a checkpoint of a tiny network with random weights."""
    torch.manual_seed(seed)
    network = VisibleViT(**VIT)
    provenance = dict(backbone=network.options, pixel_mean=[127.5] * 3, pixel_std=[60.0] * 3, teachers=[])
    weights = {f'backbone.{key}': value for key, value in network.state_dict().items()}
    torch.save(dict(state_dict=weights, meta=dict(mkd_plugin=provenance)), root / name)
    return root / name
