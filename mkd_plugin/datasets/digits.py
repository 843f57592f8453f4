"""scikit-learn's handwritten digits as an ordinary image folder.

1,797 real 8 × 8 scans of digits by 43 people (UCI, Alpaydin & Kaynak 1998), shipped with scikit-learn. They are written
once, enlarged four times, as PNG files that the hosts' dataset classes read:

    <root>/train/<digit>/<number>.png     1,440 images
    <root>/val/<digit>/<number>.png         357 images
    <root>/meta/<labels a class>_<draw>.txt    labelled subsets of train, written by :func:`draw_labelled`
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

NUM_TRAIN, NUM_VAL = 1440, 357
SIDE = 32
COMPLETE = 'complete.txt'


def write_digits(root: str | Path) -> Path:
    """Write the digits, unless they are there already.

    The split is fixed (stratified, seed 0). A folder that was only half written is completed.

    Returns:
        ``root`` as a path.
    """
    root = Path(root)
    if (root / COMPLETE).is_file():
        return root
    digits = load_digits()
    for split, members in split_scans(digits.target).items():
        for number in members:
            scan = Image.fromarray((digits.images[number] * (255 / 16)).round().astype(np.uint8))
            folder = root / split / str(digits.target[number])
            folder.mkdir(parents=True, exist_ok=True)
            scan.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f'{number:04d}.png')
    (root / COMPLETE).write_text(f'{NUM_TRAIN} images for training, {NUM_VAL} for validation\n')
    return root


def split_scans(labels: npt.NDArray[np.int_]) -> dict[str, npt.NDArray[np.int_]]:
    """Numbers of the scans in ``train`` and ``val``: no scan is in both. ``labels`` are those of all 1,797."""
    train, val = train_test_split(
        np.arange(len(labels)), train_size=NUM_TRAIN, test_size=NUM_VAL, random_state=0, stratify=labels
    )
    return {'train': train, 'val': val}


def draw_labelled(root: str | Path, labels_per_class: int, draw: int) -> Path:
    """Write the list of a labelled subset of ``train``, in the form that mmpretrain's ``CustomDataset`` reads.

    The same (labels_per_class, draw) always gives the same images, and a draw with fewer labels is part of the draw with
    more: comparisons are paired.

    Returns:
        The list: one line ``<digit>/<number>.png <digit>`` an image.

    Raises:
        ValueError: A class has fewer images.
    """
    root = Path(root)
    lines = []
    for folder in sorted((root / 'train').iterdir()):
        images = sorted(folder.glob('*.png'))
        if not 1 <= labels_per_class <= len(images):
            raise ValueError(f'labels_per_class={labels_per_class}: class {folder.name} has 1 … {len(images)} images.')
        order = np.random.default_rng((draw, int(folder.name))).permutation(len(images))
        lines += [f'{folder.name}/{images[i].name} {folder.name}' for i in order[:labels_per_class]]
    listed = root / 'meta' / f'{labels_per_class:02d}_{draw}.txt'
    listed.parent.mkdir(exist_ok=True)
    half = listed.with_name(f'{listed.name}.{os.getpid()}')
    half.write_text('\n'.join(lines) + '\n')
    half.replace(listed)  # in one step: another process may be reading the same list
    return listed
