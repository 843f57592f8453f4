"""Any folder or list of images without labels: reading lists, and replacing images that cannot be read."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import get, get_file_backend
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.base_dataset import BaseDataset

from mkd_plugin.datasets.loading import UnreadableImageError
from mkd_plugin.registry import DATASETS

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp', '.gif')
LONGEST = 32_768  # characters of a line; paths have up to 4096 bytes
MOST_MARKS = 2**20  # bytes of marks; beyond, images share them, and one of two unreadable ones may not be counted
MOST_CLASSES = 1_000_000  # class ids beyond are taken for mistakes: memory for a score of each class is allocated


def read_list(path: str | Path) -> list[str]:
    """Read the lines of a list that are not blank, without their ends.

    A list is UTF-8, with or without a byte order mark. One that is not is read as Latin-1, with a warning. Raises
    ValueError if it does not exist, is no regular file, holds zero bytes as UTF-16 and binary files do, or a line that is
    longer than any path.
    """
    if '://' not in str(path) and not Path(path).is_file():
        what = 'is a folder, pipe or device, not a file' if Path(path).exists() else 'does not exist'
        raise ValueError(f'The list {path} {what}.')
    content = get(str(path))
    if b'\0' in content:
        raise ValueError(f'The list {path} is no text of one entry a line: it is binary, or UTF-16. Save it as UTF-8.')
    try:
        return lines_of(path, content, 'utf-8-sig')
    except UnicodeDecodeError as error:
        text = f'{path} is not UTF-8 (line {content.count(10, 0, error.start) + 1}): it is read as Latin-1.'
        print_log(f'{text} If names are not found, save it as UTF-8.', 'current', level=logging.WARNING)
        return lines_of(path, content, 'latin-1')


def lines_of(path: str | Path, content: bytes, encoding: str) -> list[str]:
    """Decode a list to its lines that are not blank."""
    with io.TextIOWrapper(io.BytesIO(content), encoding, newline='\n') as lines:
        found = [line.rstrip('\r\n') for line in lines if line.strip()]
    if any(len(line) > LONGEST for line in found):
        raise ValueError(f'A line of {path} is longer than any path: it is no list of one entry a line.')
    return found


class ReplaceUnreadable(BaseDataset):
    """A dataset that replaces an unreadable image by the next readable one, so that a run depends on the files only.

    Such an image is reported once, with its path; ``unreadable`` counts them over all workers of this process. Up to
    ``max_unreadable`` different ones are allowed. Only a :class:`UnreadableImageError` leads to a replacement; other errors
    in the pipeline are raised.
    """

    def __init__(self, *, data_root: str, max_unreadable: int, **options: Any) -> None:
        if not data_root:
            raise ValueError("data_root='': give the folder of the images or shards.")
        if max_unreadable < 0:
            raise ValueError(f'max_unreadable={max_unreadable}: give 0 (none may be) or more.')
        self.max_unreadable = max_unreadable
        super().__init__(data_root=data_root, **options)

    def full_init(self) -> None:
        """List the images, and allocate the marks shared by the workers."""
        if self._fully_initialized:
            return
        super().full_init()
        marks = torch.zeros(min(len(self), MOST_MARKS), dtype=torch.bool)
        self._marks: torch.Tensor = marks.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def unreadable(self) -> int:
        """Number of different unreadable files so far, over all workers of this process."""
        return int(self._marks.sum())

    def __getitem__(self, idx: int) -> Any:
        """Load an image, or the next one that can be read. Raises ValueError for more than ``max_unreadable``."""
        self.full_init()
        idx %= len(self)
        for step in range(len(self)):
            candidate = (idx + step) % len(self)
            try:
                sample = self.prepare_data(candidate)
            except UnreadableImageError as error:
                self._report(candidate, error)
                continue
            if sample is not None:  # transforms reject an image by returning None
                return sample
        raise ValueError(f'None of the {len(self)} images of {self.img_prefix} can be used; the reasons are above.')

    def _report(self, idx: int, error: UnreadableImageError) -> None:
        """Mark a file, and log it the first time."""
        mark = idx % len(self._marks)
        if self._marks[mark]:
            return
        self._marks[mark] = True
        if self.unreadable > self.max_unreadable:
            raise ValueError(
                f'{self.unreadable} images of {self.img_prefix} cannot be read, but only max_unreadable='
                f'{self.max_unreadable} are allowed. The latest is {error}. Repair or remove them, or allow more.'
            ) from error
        print_log(
            f'{error}; the next image takes its place (unreadable so far: {self.unreadable})',
            logger='current',
            level=logging.WARNING,
        )


@DATASETS.register_module()
class ImageFolder(ReplaceUnreadable, CustomDataset):
    """Every image below ``data_prefix`` in the folder ``data_root``, at any depth, or those of a list; without labels.

    ``ann_file`` is a list of paths below the folder, one per line (:func:`read_list`), to use
    instead of searching it. ``extensions`` are those of images, in any case. Up to ``max_unreadable`` images that cannot be
    read are replaced: see :class:`ReplaceUnreadable`. All other options are those of mmpretrain's ``CustomDataset``. Raises
    ValueError if the folder or list does not exist, cannot be read, or has no images.
    """

    def __init__(
        self,
        *,
        data_root: str,
        data_prefix: str = '',
        ann_file: str = '',
        extensions: Sequence[str] = EXTENSIONS,
        max_unreadable: int = 100,
        **options: Any,
    ) -> None:
        if 'with_label' in options:
            raise ValueError("ImageFolder has no labels: leave with_label out, or use mmpretrain's CustomDataset.")
        super().__init__(
            data_root=data_root,
            data_prefix=data_prefix,
            ann_file=ann_file,
            with_label=False,
            extensions=extensions,
            max_unreadable=max_unreadable,
            **options,
        )

    def load_data_list(self) -> list[dict[str, str]]:
        """The paths, sorted; those of a list in its order."""
        folder = str(self.img_prefix)
        local = '://' not in folder  # other file backends report their own errors
        if local and not Path(folder).is_dir():
            what = 'is a file, not a folder' if Path(folder).exists() else 'does not exist'
            raise ValueError(f'{folder} {what}. Give a folder of images: --cfg-options data_root=DIR.')
        if self.ann_file:
            names = read_list(self.ann_file)
            if not names:
                text = f'the list is empty. Write one path below {folder} a line.'
                raise ValueError(f'{self.ann_file} has no images: {text}')
            join = get_file_backend(folder, enable_singleton=True).join_path
            return [{'img_path': join(folder, name)} for name in names]
        try:
            images: list[dict[str, str]] = super().load_data_list()
        except OSError as error:
            raise ValueError(f'{folder} cannot be read: {error}. Check its permissions and its disk.') from error
        except RuntimeError:  # raised by mmpretrain if there are none
            images = []
        if not images:
            raise ValueError(f'{folder} has no images{self._found_instead(folder) if local else ""}.')
        return images

    def _found_instead(self, folder: str) -> str:
        """What the folder holds instead of images."""
        kinds = Counter(path.suffix.lower() or path.name for path in Path(folder).rglob('*') if path.is_file())
        found = ', '.join(f'{count} × {kind}' for kind, count in kinds.most_common(4)) or 'nothing'
        if not kinds.keys().isdisjoint(('.tar', '.tgz', '.gz', '.bz2', '.xz', '.zst')):
            found += ' (for tar shards: train_dataloader.dataset.type=mkd_plugin.ShardDataset)'
        return f' ({", ".join(sorted(self.extensions))}): it holds {found}. Give another data_root, or extensions'
