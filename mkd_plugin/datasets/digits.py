"""scikit-learn's handwritten digits as an image folder that the hosts' dataset classes read.

1,797 real 8 × 8 scans of digits by 43 people (UCI, Alpaydin & Kaynak 1998), shipped with scikit-learn and written as PNG
files, enlarged four times:

    <root>/train/<digit>/<number>.png     1,440 images
    <root>/val/<digit>/<number>.png         357 images
    <root>/meta/<labels a class>_<draw>.txt    labelled subsets of train, written by :func:`draw_labelled`
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mkd_plugin.utils.files import write_whole

NUM_TRAIN, NUM_VAL = 1440, 357
SIDE = 32
COMPLETE = 'complete.txt'


def write_digits(root: str | Path) -> Path:
    """Write the digits unless they exist, and return the folder; an incomplete one is completed. The split is fixed
    (stratified, seed 0).
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
    """Indices of the scans in ``train`` and in ``val``, given the labels of all 1,797."""
    train, val = train_test_split(
        np.arange(len(labels)), train_size=NUM_TRAIN, test_size=NUM_VAL, random_state=0, stratify=labels
    )
    return {'train': train, 'val': val}


def draw_labelled(root: str | Path, labels_per_class: int, draw: int) -> Path:
    """Write the list of a labelled subset of ``train`` for mmpretrain's ``CustomDataset``, and return its path.

    It has a line ``<digit>/<number>.png <digit>`` per image. The same (labels_per_class, draw) always gives the same
    images; a draw with fewer labels is a subset of the same draw with more, so that comparisons are paired. Raises
    ValueError if a class has fewer images.
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
    write_whole(listed, '\n'.join(lines) + '\n')  # another process may be reading the same list
    return listed
