"""A data set that reads single images from tar shards, in any order."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from rich.console import Console
from rich.progress import Progress

from mkd_plugin.datasets.folder import EXTENSIONS, MOST_CLASSES, ReplaceUnreadable, lines_of, read_list
from mkd_plugin.datasets.shards.listing import ShardList, open_list
from mkd_plugin.datasets.shards.members import File, ShardIndex, read_index, scan, write_index
from mkd_plugin.datasets.shards.storage import place_of
from mkd_plugin.registry import DATASETS

CLASSES = 'classes.txt'
THREADS = 16  # indexes read at the same time
PACKED = re.compile(r'\.(tgz|tar\.(gz|bz2|xz|zst))$')


@DATASETS.register_module()
class ShardDataset(ReplaceUnreadable):
    """The images in a folder's tar files, WebDataset's or any others.

    ``data_root`` is a folder, or an address that fsspec reads, such as ``s3://bucket/folder``. An index beside each tar file,
    made on first use, holds the position of every image. Samplers can therefore shuffle the whole set, and a resumed run
    continues with the very next image. Every image member is a sample; its label is in the
    ``.cls`` or ``.json`` member of the same key. ``img_path`` is an address that all loaders of the hosts can read.
    Unreadable images are replaced: see :class:`ReplaceUnreadable`. Options that are not listed are those of mmpretrain's
    ``BaseDataset``.

    Args:
        shards: Pattern of the files, such as ``train/*.tar`` or ``**/*.tar``; they are read in the order of their names.
        with_label: Whether to read labels; then every image must have one.
        classes: Names of the classes, or a file with one per line; by default ``classes.txt`` in the folder if it exists.
        extensions: Extensions of images, in any case.
        exclude: An ending, or several, of images that are no samples, in any case: ``'.seg.png'`` leaves the masks
            ``key.seg.png`` out. A warning says if there are several images of one key.

    Raises:
        ValueError: There is no folder, tar file or image, a tar file is damaged, or an image has no label.
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
        exclude: str | Sequence[str] = (),
        max_unreadable: int = 100,
        **options: Any,
    ) -> None:
        self.shards, self.with_label, self._folder = shards, with_label, data_prefix
        self.extensions = tuple(extension.lower() for extension in extensions)
        self.exclude = tuple(
            ending.lower() for ending in ([exclude] if isinstance(exclude, str) else exclude) if ending
        )
        names = place_of(os.path.join(data_root, data_prefix, CLASSES))
        if with_label and classes is None and names.is_file():
            local = isinstance(names, Path)
            classes = str(names) if local else lines_of(str(names), names.read_text().encode(), 'utf-8-sig')
        if isinstance(classes, str):
            classes = read_list(os.path.expanduser(classes))
        super().__init__(
            ann_file='',
            data_root=data_root,
            data_prefix=data_prefix,
            classes=classes,
            max_unreadable=max_unreadable,
            **{'serialize_data': False, **options},  # the list is no list of objects
        )

    def _join_prefix(self) -> None:
        """Join the folder; mmengine does not know the protocols of fsspec."""
        if '://' in self.data_root:
            self.data_prefix = {'img_path': os.path.join(self.data_root, self._folder)}
        else:
            super()._join_prefix()

    def load_data_list(self) -> ShardList:
        """Address and label of every image, in the order of the tar files and their members."""
        folder = place_of(str(self.img_prefix))
        tars, left_out = find_tars(folder, self.shards)
        if left_out:
            print_log(left_out, 'current', level=logging.WARNING)
        options = (self.shards, self.extensions, self.exclude)
        classes = (len(self.CLASSES) if self.CLASSES else MOST_CLASSES) if self.with_label else 0
        read = partial(read_indexes, unwritten={})
        images = open_list(folder, tars, read, self._is_sample, options=options, classes=classes)
        if not images:
            raise ValueError(f'The tar files of {self.img_prefix} have no images ({", ".join(self.extensions)}).')
        unlabelled, first = images.header['unlabelled']
        if unlabelled:
            raise ValueError(
                f'with_label=True, but {unlabelled} of {len(images)} images have no class number in a .cls or .json '
                f'member of the same key, or none below the number of classes. The first is {first[0]}.'
            )
        same_key, example = images.header['same_key']
        if same_key:
            print_log(
                f'{same_key} of the {len(images)} samples have the key of another one: {example[0]}, for example. If they '
                'are masks, leave them out: train_dataloader.dataset.exclude=.seg.png',
                'current',
                level=logging.WARNING,
            )
        return images

    def _is_sample(self, name: str) -> bool:
        """Whether a member is an image that is not excluded, nor macOS's companion of a file."""
        lower = name.lower()
        hidden = name.rpartition('/')[2].startswith('.')
        return lower.endswith(self.extensions) and not hidden and not lower.endswith(self.exclude)


def read_indexes(tars: Sequence[File], unwritten: dict[File, ShardIndex]) -> Iterator[ShardIndex]:
    """Yield the content of tar files from the indexes beside them; scan those without one, and write their index.

    ``unwritten`` receives the indexes that cannot be written, and serves them the next time. Shows the progress.
    """
    console, refused = Console(stderr=True), None
    with ThreadPoolExecutor(THREADS) as pool, Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task('index', total=sum(tar.stat().st_size for tar in tars))
        told = bool(unwritten)
        for start in range(0, len(tars), THREADS):  # memory holds a few at a time; storage answers many at once
            part = tars[start : start + THREADS]
            for tar, index in zip(part, pool.map(read_index, part), strict=True):
                index = index or unwritten.get(tar)
                if index is not None:
                    bar.advance(task, index.size)
                    yield index
                    continue
                if not told:
                    print_log(
                        f'{tar} has no index, or an old one: the headers of all such files are read, once.', 'current'
                    )
                told, index = True, scan(tar, progress=partial(bar.advance, task))
                if isinstance(tar, Path):
                    try:
                        write_index(tar, index)
                    except OSError as error:
                        unwritten[tar], refused = index, error
                yield index
    if refused is not None:
        print_log(
            f'The index cannot be kept beside the tar files ({refused}): it stays in memory, and another machine reads the '
            'headers again.',
            'current',
            level=logging.WARNING,
        )


def find_tars(folder: File, shards: str) -> tuple[list[File], str]:
    """Return the tar files of a folder, and what to say about compressed ones. Raises ValueError if there is none."""
    if not folder.is_dir():
        raise ValueError(f'{folder} does not exist. Give a folder of tar files: --cfg-options data_root=DIR.')
    tars: list[Any] = sorted(folder.glob(shards))
    packed = sorted(path.name for path in folder.glob('*') if PACKED.search(path.name.lower()))
    advice = f'{packed[0]} is compressed: unpack it (gzip -d, bzip2 -d, xz -d or zstd -d).' if packed else ''
    if not tars:
        advice = advice or 'For a folder of images use mkd_plugin.ImageFolder.'
        raise ValueError(f'{folder} has no {shards}. {advice}')
    return tars, f'{folder}: {len(packed)} files are left out. {advice}' if packed else ''
