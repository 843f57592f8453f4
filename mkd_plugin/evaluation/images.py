"""Labelled images for evaluation: a folder with a folder for each class, or a list; read as the hosts' tests read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import CenterCrop, LoadImageFromFile
from mmpretrain.datasets.transforms import ResizeEdge
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mkd_plugin.datasets.folder import EXTENSIONS

ENDS = 64 * 1024  # bytes at each end of a file that its identity covers: all of most photographs


@dataclass(frozen=True)
class Preprocessing:
    """Short edge to ``resize`` pixels, bicubic by Pillow, then the central ``crop``.

    Attributes:
        crop: Height and width, pixels.
        resize: At least the crop's; ImageNet's custom is crop · 256 / 224.
    """

    crop: tuple[int, int]
    resize: int

    def __post_init__(self) -> None:
        if min(self.crop) < 1 or self.resize < min(self.crop):
            raise ValueError(f'resize={self.resize}: the short edge must not be smaller than the crop, {self.crop}.')

    @classmethod
    def customary(cls, crop: tuple[int, int]) -> Preprocessing:
        """256 for a crop of 224, in proportion for others."""
        return cls(crop, round(max(crop) * 256 / 224))


class LabelledImages(Dataset[Tensor]):
    """Images as uint8 RGB, (3, H, W).

    Args:
        folder: What names are relative to.
        names: Paths below it.
        labels: One class id an image.
        classes: Names of the class folders; empty where a list gives the ids.
        preprocessing: To one size for all.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocessing: Preprocessing,
    ) -> None:
        self.folder, self.names, self.classes = folder, list(names), tuple(classes)
        self.labels = torch.tensor(labels)
        self.preprocessing = preprocessing
        height, width = preprocessing.crop
        self.steps: list[Any] = [
            LoadImageFromFile(),
            ResizeEdge(preprocessing.resize, edge='short', backend='pillow', interpolation='bicubic'),
            CenterCrop((width, height)),
        ]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        results: dict[str, Any] = dict(img_path=str(self.folder / self.names[index]))
        try:
            for step in self.steps:
                results = step(results)
        except (AssertionError, OSError, cv2.error) as error:  # what mmcv raises for a file that is no image
            raise ValueError(
                f'{results["img_path"]} cannot be read as an image ({error}). Repair or remove it.'
            ) from error
        bgr_HWC = results['img']
        return torch.from_numpy(np.ascontiguousarray(bgr_HWC[..., ::-1])).permute(2, 0, 1)

    def batches(self, start: int, stop: int, *, batch_size: int, workers: int) -> Iterator[Tensor]:
        """Images ``start`` … ``stop``, in order, as RGB in [0, 1], (B, 3, H, W)."""
        part = Subset(self, range(start, stop))
        for images in DataLoader(part, batch_size=batch_size, num_workers=workers):
            yield images.float() / 255

    def identity(self) -> dict[str, Any]:
        """What features of these images depend on: names, bytes, preprocessing; neither times nor the folder's place.

        A file's bytes are its size and its first and last 64 KiB. Labels are not part of it.
        """
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f'{name}\0'.encode())
            digest.update(file_identity(self.folder / name))
        return dict(images=len(self), files=digest.hexdigest(), preprocessing=asdict(self.preprocessing))


def file_identity(path: Path) -> bytes:
    """Digest of a file's size and ends."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open('rb') as file:
        digest.update(file.read(ENDS))
        if size > ENDS:
            file.seek(max(ENDS, size - ENDS))
            digest.update(file.read())
    return digest.digest()


def open_images(
    folder: str | Path, preprocessing: Preprocessing, *, annotation: str | Path | None = None
) -> LabelledImages:
    """Find labelled images.

    Args:
        folder: With a folder for each class; ids follow their sorted names, as in mmpretrain.
        preprocessing: To one size for all.
        annotation: mmpretrain's list instead: a path below the folder and a class id in each line.

    Raises:
        ValueError: There is no such folder or list, or no label, or no image in it or in one of its classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'{folder} is not a folder. Give one with a folder for each class.')
    if annotation is not None:
        names, labels = read_list(Path(annotation))
        classes: list[str] = []
    else:
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        names, labels = find_images(folder, classes)
    return LabelledImages(folder, names, labels, classes, preprocessing)


def find_images(folder: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Images below each class's folder, sorted, and their ids."""
    if not classes:
        raise ValueError(
            f'{folder} has no labels: there is no folder in it. Put the images of each class into a folder of its name, or '
            'give a list with a path and a class id in each line.'
        )
    found = [
        sorted(path for path in (folder / name).rglob('*') if path.suffix.lower() in EXTENSIONS) for name in classes
    ]
    empty = [name for name, images in zip(classes, found, strict=True) if not images]
    if empty:
        raise ValueError(f'{folder}: no images in {shorten(empty)}. Remove empty folders, or fill them.')
    names = [str(path.relative_to(folder)) for images in found for path in images]
    return names, [label for label, images in enumerate(found) for _ in images]


def read_list(path: Path) -> tuple[list[str], list[int]]:
    """Paths and ids of mmpretrain's annotation file."""
    if not path.is_file():
        raise ValueError(f'The list {path} does not exist: a path and a class id in each line.')
    rows = [line.rsplit(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not row[1].isdecimal():
            raise ValueError(
                f'{path} has no label for its image {number}, {" ".join(row)!r}: write a path and a class id (0, 1, …) in '
                'each line.'
            )
    if not rows:
        raise ValueError(f'The list {path} is empty.')
    return [row[0] for row in rows], [int(row[1]) for row in rows]


def check_same_classes(train: LabelledImages, val: LabelledImages) -> None:
    """Raise ValueError unless ids mean the same in both."""
    if train.classes and val.classes:
        only_train, only_val = set(train.classes) - set(val.classes), set(val.classes) - set(train.classes)
        if only_train or only_val:
            raise ValueError(
                f'Class folders differ: only in {train.folder} are {shorten(sorted(only_train))}, only in {val.folder} '
                f'{shorten(sorted(only_val))}. Give both the same names, or lists with class ids.'
            )
    unknown = sorted(set(val.labels.tolist()) - set(train.labels.tolist()))
    if unknown:
        raise ValueError(f'{val.folder} has classes without a training image: ids {shorten(unknown)}.')


def shorten(names: Sequence[object]) -> str:
    """The first few of many."""
    if not names:
        return 'none'
    shown = ', '.join(map(str, names[:5]))
    return shown if len(names) <= 5 else f'{shown} and {len(names) - 5} more'
