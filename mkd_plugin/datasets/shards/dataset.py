"""A data set that reads single images from tar shards, in any order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mkd_plugin.datasets.folder import EXTENSIONS, ReplaceUnreadable
from mkd_plugin.datasets.shards.members import ShardIndex, key_of, member_uri, read_index, scan, write_index
from mkd_plugin.registry import DATASETS

CLASSES = 'classes.txt'


@DATASETS.register_module()
class ShardDataset(ReplaceUnreadable):
    """The images in a folder's tar files, WebDataset's or any others.

    An index beside each tar file, made on first use, holds the position of every image. Samplers can therefore shuffle the
    whole set, and a resumed run continues with the very next image. Every image member is a sample; its label is in the
    ``.cls`` or ``.json`` member of the same key. ``img_path`` is an address that all loaders of the hosts can read.

    An image that cannot be read is replaced: see :class:`ReplaceUnreadable`.

    Args:
        data_root: The folder.
        data_prefix: A folder below it.
        shards: Pattern of the files, such as ``train/*.tar`` or ``**/*.tar``; they are read in the order of their names.
        with_label: Whether to read labels; then every image must have one.
        classes: Names of the classes, or a file with one per line; by default ``classes.txt`` in the folder if it exists.
        extensions: Extensions of images, in any case. ``('.jpg',)`` leaves ``key.seg.png`` out.
        max_unreadable: How many different images may be unreadable before an error is raised.
        options: Those of mmpretrain's ``BaseDataset``: ``pipeline``, ``indices``, ….

    Raises:
        ValueError: The folder does not exist, has no tar file or none with images, a tar file is damaged, or an image has no
            label.
    """

    def __init__(
        self,
        *,
        data_root: str,
        data_prefix: str = '',
        shards: str = '*.tar',
        with_label: bool = False,
        classes: str | Sequence[str] | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        max_unreadable: int = 100,
        **options: Any,
    ) -> None:
        if not data_root:
            raise ValueError("data_root='': give the folder of the shards.")
        self.shards, self.with_label = shards, with_label
        self.extensions = tuple(extension.lower() for extension in extensions)
        names = Path(data_root, data_prefix, CLASSES)
        if with_label and classes is None and names.is_file():
            classes = str(names)
        super().__init__(
            ann_file='',
            data_root=data_root,
            data_prefix=data_prefix,
            classes=classes,
            max_unreadable=max_unreadable,
            **options,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Address and label of every image, in the order of the tar files and their members."""
        images: list[dict[str, Any]] = []
        unlabelled: list[str] = []
        for tar, index in self._indexed_tars():
            for name, offset, size in index.members:
                if not name.lower().endswith(self.extensions) or name.rpartition('/')[2].startswith('.'):
                    continue
                image: dict[str, Any] = {'img_path': member_uri(tar, name, offset, size)}
                if self.with_label:
                    image['gt_label'] = label = index.labels.get(key_of(name), -1)
                    if label < 0 or (self.CLASSES and label >= len(self.CLASSES)):
                        unlabelled.append(f'{tar.name}: {name}')
                images.append(image)
        if not images:
            raise ValueError(f'The tar files of {self.img_prefix} have no images ({", ".join(self.extensions)}).')
        if unlabelled:
            raise ValueError(
                f'with_label=True, but {len(unlabelled)} of {len(images)} images have no class number in a .cls or .json '
                f'member of the same key, or none below the number of classes. The first is {unlabelled[0]}.'
            )
        return images

    def _indexed_tars(self) -> list[tuple[Path, ShardIndex]]:
        """Every tar file with its index; tar files without one are scanned."""
        folder = Path(self.img_prefix)
        if not folder.is_dir():
            raise ValueError(f'{folder} does not exist. Give a folder of tar files: --cfg-options data_root=DIR.')
        tars = sorted(folder.glob(self.shards))
        if not tars:
            raise ValueError(f'{folder} has no {self.shards}. For a folder of images use mkd_plugin.ImageFolder.')
        found = {tar: read_index(tar) for tar in tars}
        missing = [tar for tar, index in found.items() if index is None]
        if missing:
            found.update(index_all(missing))
        return [(tar, index) for tar, index in found.items() if index is not None]

    def extra_repr(self) -> list[str]:
        """Lines for mmpretrain's ``repr``."""
        return [f'Tar files: \t{Path(self.img_prefix, self.shards)}']


def index_all(tars: Sequence[Path]) -> dict[Path, ShardIndex]:
    """Scan tar files, show the progress, and write the indexes beside them; a read-only folder only causes a warning."""
    print_log(f'Reading the headers of {len(tars)} tar files of {tars[0].parent}: once, they had no index.', 'current')
    indices, unwritten = {}, None
    columns = [TextColumn('index'), BarColumn(), DownloadColumn(), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task('', total=sum(tar.stat().st_size for tar in tars))
        for tar in tars:
            indices[tar] = scan(tar, progress=partial(bar.advance, task))
            try:
                write_index(tar, indices[tar])
            except OSError as error:
                unwritten = error
    if unwritten is not None:
        print_log(
            f'The index cannot be kept ({unwritten}): it stays in memory, and the next start reads the headers again.',
            'current',
            level=logging.WARNING,
        )
    return indices
