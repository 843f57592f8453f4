"""The images of a report: chosen once, read from the disk as each network wants them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from mkd_plugin.interop.subjects import Subject


class ImageSet:
    """Some images of a folder, evenly spread over its sorted files.

    Args:
        root: The folder; images may lie in folders below it.
        count: How many are wanted; all if there are fewer.

    Attributes:
        files: Those chosen.
        labels: Number of the class of each, by the folder below ``root`` that it lies in; None if some lie in none.
        digest: Of their names and contents.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """

    def __init__(self, root: str | Path, count: int) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f'--data {root}: there is no such folder. Give a folder of images.')
        found = sorted(
            path for path in self.root.rglob('*') if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
        )
        if not found:
            raise ValueError(f'--data {root}: no image lies there, nor below (looked for {", ".join(IMG_EXTENSIONS)}).')
        self.available = len(found)
        places = np.linspace(0, len(found), min(count, len(found)), endpoint=False).astype(int)
        self.files = [found[place] for place in places]
        parts = [file.relative_to(self.root).parts for file in self.files]
        classes = sorted({part[0] for part in parts})
        nested = all(len(part) > 1 for part in parts)
        self.labels = [classes.index(part[0]) for part in parts] if nested and len(classes) > 1 else None
        self.digest = self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(
                f'{file.relative_to(self.root).as_posix()}\n'.encode() + hashlib.sha256(file.read_bytes()).digest()
            )
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def evenly(self, count: int) -> list[int]:
        """Numbers of a few of them, evenly spread."""
        return [i * len(self) // min(count, len(self)) for i in range(min(count, len(self)))]

    def read(self, numbers: Sequence[int], image_hw: tuple[int, int]) -> Tensor:
        """RGB in [0, 1], (B, 3, H, W): scaled until they cover the size (bicubic), and cropped to its middle.

        Raises:
            ValueError: One cannot be read.
        """
        pictures = []
        for number in numbers:
            file = self.files[number]
            try:
                with Image.open(file) as opened:
                    picture = ImageOps.fit(opened.convert('RGB'), image_hw[::-1], Image.Resampling.BICUBIC)
            except OSError as error:
                raise ValueError(f'{file} cannot be read as an image ({error}). Repair or remove it.') from error
            pictures.append(np.asarray(picture))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255

    def batches(self, subject: Subject, size: int) -> Iterator[Tensor]:
        """All images as a network wants them, so many at once, on its device."""
        for first in range(0, len(self), size):
            numbers = range(first, min(first + size, len(self)))
            yield subject.normalise(self.read(numbers, subject.network.image_hw).to(subject.device))
