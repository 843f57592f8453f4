"""Labelled images for evaluation: class folders or an annotation file, with the hosts' test-time preprocessing.

Files are decoded as in pre-training (:mod:`mkd_plugin.datasets.loading`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmcv.transforms import CenterCrop
from mmpretrain.datasets.transforms import ResizeEdge
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mkd_plugin.checkpoint.report import shorten
from mkd_plugin.datasets.folder import EXTENSIONS, MOST_CLASSES, read_list
from mkd_plugin.datasets.loading import UnreadableImageError, check_regular, read_image

READER = 2  # of pixels; raise it when the same files give others, because features are cached
HASHED_BYTES = 64 * 1024  # at each end of a file; covers most photographs completely


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short edge (bicubic, Pillow), then crop the centre."""

    crop: tuple[int, int]  #: Height and width, pixels
    resize: int  #: Length of the short edge before the crop, pixels; at least that of the crop

    def __post_init__(self) -> None:
        if min(self.crop) < 1 or self.resize < min(self.crop):
            raise ValueError(f'resize={self.resize}: the short edge must be at least as long as the crop, {self.crop}.')

    @classmethod
    def standard(cls, crop: tuple[int, int]) -> Preprocessing:
        """Return ImageNet's usual ratio: a short edge of 256 for a crop of 224."""
        return cls(crop, round(max(crop) * 256 / 224))


@dataclass(eq=False)
class LabelledImages(Dataset[Tensor]):
    """Images as uint8 RGB tensors, (3, H, W)."""

    folder: Path  #: Folder that ``names`` are relative to
    names: list[str]  #: Paths of the images
    labels: Tensor  #: Class id of each image
    classes: tuple[str, ...]  #: Names of the class folders; empty if an annotation file gives the ids
    preprocessing: Preprocessing  #: Resize and crop

    def __post_init__(self) -> None:
        self.transforms: list[Any] = [
            ResizeEdge(self.preprocessing.resize, edge='short', backend='pillow', interpolation='bicubic'),
            CenterCrop(self.preprocessing.crop[::-1]),
        ]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        results: dict[str, Any] = dict(img=read_named(self.folder / self.names[index], order='bgr'))
        for transform in self.transforms:
            results = transform(results)
        bgr_HWC = results['img']
        return torch.from_numpy(np.ascontiguousarray(bgr_HWC[..., ::-1])).permute(2, 0, 1)

    def batches(self, start: int, stop: int, *, batch_size: int, workers: int) -> Iterator[Tensor]:
        """Yield images ``start`` up to ``stop`` as RGB in [0, 1], (B, 3, H, W). Raises ValueError for an unreadable one."""
        try:
            for images in DataLoader(Subset(self, range(start, stop)), batch_size=batch_size, num_workers=workers):
                yield images.float() / 255
        except UnreadableImageError as error:  # a worker's has its traceback before the message
            raise ValueError(str(error).strip().splitlines()[-1].rpartition('UnreadableImageError: ')[2]) from error

    def identity(self) -> dict[str, Any]:
        """Identify the images by names, bytes and preprocessing, independent of location, time stamps and labels.

        A file counts with its size and its first and last 64 KiB.
        """
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f'{name}\0'.encode())
            digest.update(file_digest(self.folder / name))
        return dict(images=len(self), files=digest.hexdigest(), reader=READER, preprocessing=asdict(self.preprocessing))


def read_named(path: Path, *, order: Literal['rgb', 'bgr'] = 'rgb') -> NDArray[np.uint8]:
    """Read an image to (H, W, 3) uint8. Raises ValueError, with a sentence that names the file."""
    try:
        return read_image(str(path), order=order)
    except UnreadableImageError as error:
        reason = str(error).removeprefix(f'{path}: ')
        raise UnreadableImageError(f'{path} cannot be read as an image ({reason}). Repair or remove it.') from error


def file_digest(path: Path) -> bytes:
    """Hash a file's size and its two ends. Raises ValueError if it is no regular file."""
    try:
        check_regular(path)
    except UnreadableImageError as error:
        raise ValueError(f'{path} cannot be read as an image ({error}). Remove it.') from error
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open('rb') as file:
        digest.update(file.read(HASHED_BYTES))
        if size > HASHED_BYTES:
            file.seek(max(HASHED_BYTES, size - HASHED_BYTES))
            digest.update(file.read())
    return digest.digest()


def open_images(
    folder: str | Path, preprocessing: Preprocessing, *, annotation: str | Path | None = None
) -> LabelledImages:
    """Find labelled images: those of the class folders, whose sorted names give the ids as in mmpretrain, or of a list.

    ``annotation`` is mmpretrain's file: in each line a path below ``folder`` and a class id. Raises ValueError if the
    folder or the file does not exist, has no labels, or a class has no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'{folder} is not a folder. Give a folder that has one folder for each class.')
    if annotation is not None:
        names, labels = read_annotation(Path(annotation))
        classes: list[str] = []
    else:
        classes = class_folders(folder)
        names, labels = find_images(folder, classes)
    return LabelledImages(folder, names, torch.tensor(labels), tuple(classes), preprocessing)


def class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def find_images(folder: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the sorted paths of the images below each class folder, and their class ids."""
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
        raise ValueError(f'{folder}: no images in {shorten(empty)}. Remove empty folders, or add images.')
    names = [str(path.relative_to(folder)) for images in found for path in images]
    return names, [label for label, images in enumerate(found) for _ in images]


def read_annotation(path: Path) -> tuple[list[str], list[int]]:
    """Read paths and class ids from mmpretrain's annotation file. Raises ValueError if it is none."""
    rows = [line.rsplit(maxsplit=1) for line in read_list(path)]
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not (row[1].isascii() and row[1].isdecimal() and len(row[1]) < 10):
            raise ValueError(
                f'{path} has no label for its image {number}, {" ".join(row)[:200]!r}: write a path and a class id '
                '(0, 1, …) in each line.'
            )
        if int(row[1]) >= MOST_CLASSES:
            raise ValueError(f'{path}: the class id {row[1]} of image {number} is not below {MOST_CLASSES:,}.')
    if not rows:
        raise ValueError(f'The list {path} is empty.')
    return [row[0] for row in rows], [int(row[1]) for row in rows]


def check_same_classes(train: LabelledImages, val: LabelledImages) -> None:
    """Raise ValueError unless class ids mean the same in both."""
    if train.classes and val.classes and set(train.classes) != set(val.classes):
        only_train, only_val = set(train.classes) - set(val.classes), set(val.classes) - set(train.classes)
        raise ValueError(
            f'Class folders differ: only in {train.folder} are {shorten(sorted(only_train)) or "none"}, only in {val.folder} '
            f'{shorten(sorted(only_val)) or "none"}. Use the same names in both, or give lists with class ids.'
        )
    unknown = sorted(set(val.labels.tolist()) - set(train.labels.tolist()))
    if unknown:
        raise ValueError(f'{val.folder} has classes without a training image: ids {shorten([*map(str, unknown)])}.')


def spread(total: int, count: int) -> list[int]:
    """Return up to ``count`` places, evenly spread over ``total``."""
    return sorted({round(place) for place in np.linspace(0, total - 1, min(count, total)).tolist()})


def open_folder(folder: str | Path, preprocessing: Preprocessing, *, most: int | None = None) -> LabelledImages:
    """Find images without labels, at any depth, in the order of their paths; every label is 0.

    At most ``most`` are taken, evenly spread. Raises ValueError if the folder does not exist or has no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'{folder} is not a folder. Give a folder of images.')
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise ValueError(f'{folder} has no images ({", ".join(EXTENSIONS)}).')
    names = [str(found[place].relative_to(folder)) for place in spread(len(found), most or len(found))]
    return LabelledImages(folder, names, torch.zeros(len(names), dtype=torch.long), (), preprocessing)


def open_any(folder: str | Path, preprocessing: Preprocessing) -> LabelledImages:
    """Find labelled images if every image lies in a folder for its class, else images without, as :func:`open_folder`."""
    folder = Path(folder)
    everything = open_folder(folder, preprocessing)
    if any(len(Path(name).parts) < 2 for name in everything.names):
        return everything
    classes = sorted({Path(name).parts[0] for name in everything.names})
    labels = torch.tensor([classes.index(Path(name).parts[0]) for name in everything.names])
    return replace(everything, labels=labels, classes=tuple(classes))
