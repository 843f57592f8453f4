"""A data set that reads single images from tar shards, in any order."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from rich.console import Console
from rich.progress import Progress

from mkd_plugin.datasets.folder import EXTENSIONS, MOST_CLASSES, ReplaceUnreadable, read_list
from mkd_plugin.datasets.shards.members import ShardIndex, key_of, member_uri, read_index, scan, write_index
from mkd_plugin.registry import DATASETS

CLASSES = 'classes.txt'
PACKED = re.compile(r'\.(tgz|tar\.(gz|bz2|xz|zst))$')


@DATASETS.register_module()
class ShardDataset(ReplaceUnreadable):
    """The images in a folder's tar files, WebDataset's or any others.

    An index beside each tar file, made on first use, holds the position of every image. Samplers can therefore shuffle the
    whole set, and a resumed run continues with the very next image. Every image member is a sample; its label is in the
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
        self.shards, self.with_label = shards, with_label
        self.extensions = tuple(extension.lower() for extension in extensions)
        self.exclude = tuple(
            ending.lower() for ending in ([exclude] if isinstance(exclude, str) else exclude) if ending
        )
        names = Path(data_root, data_prefix, CLASSES)
        if with_label and classes is None and names.is_file():
            classes = str(names)
        if isinstance(classes, str):
            classes = read_list(os.path.expanduser(classes))
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
        same_key, example = 0, ''
        for tar, index in self._indexed_tars():
            keys: dict[str, str] = {}
            for name, offset, size in index.members:
                if not self._is_sample(name):
                    continue
                if keys.setdefault(key_of(name), name) != name:
                    same_key, example = same_key + 1, example or f'{keys[key_of(name)]} and {name} in {tar.name}'
                image: dict[str, Any] = {'img_path': member_uri(tar, name, offset, size)}
                if self.with_label:
                    image['gt_label'] = label = index.labels.get(key_of(name), -1)
                    if not 0 <= label < (len(self.CLASSES) if self.CLASSES else MOST_CLASSES):
                        unlabelled.append(f'{tar.name}: {name}')
                images.append(image)
        if not images:
            raise ValueError(f'The tar files of {self.img_prefix} have no images ({", ".join(self.extensions)}).')
        if unlabelled:
            raise ValueError(
                f'with_label=True, but {len(unlabelled)} of {len(images)} images have no class number in a .cls or .json '
                f'member of the same key, or none below the number of classes. The first is {unlabelled[0]}.'
            )
        if same_key:
            print_log(
                f'{same_key} of the {len(images)} samples have the key of another one: {example}, for example. If they are '
                'masks, leave them out: train_dataloader.dataset.exclude=.seg.png',
                'current',
                level=logging.WARNING,
            )
        return images

    def _is_sample(self, name: str) -> bool:
        """Whether a member is an image that is not excluded, nor macOS's companion of a file."""
        lower = name.lower()
        hidden = name.rpartition('/')[2].startswith('.')
        return lower.endswith(self.extensions) and not hidden and not lower.endswith(self.exclude)

    def _indexed_tars(self) -> list[tuple[Path, ShardIndex]]:
        """Every tar file with its index; tar files without one are scanned."""
        tars, left_out = find_tars(Path(self.img_prefix), self.shards)
        if left_out:
            print_log(left_out, 'current', level=logging.WARNING)
        found = {tar: read_index(tar) for tar in tars}
        missing = [tar for tar, index in found.items() if index is None]
        if missing:
            found.update(index_all(missing))
        return [(tar, index) for tar, index in found.items() if index is not None]


def index_all(tars: Sequence[Path]) -> dict[Path, ShardIndex]:
    """Scan tar files, show the progress, and write the indexes beside them; a read-only folder only causes a warning."""
    print_log(f'Reading the headers of {len(tars)} tar files of {tars[0].parent}: once, they had no index.', 'current')
    indices, unwritten = {}, None
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task('index', total=sum(tar.stat().st_size for tar in tars))
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


def find_tars(folder: Path, shards: str) -> tuple[list[Path], str]:
    """Return the tar files of a folder, and what to say about compressed ones. Raises ValueError if there is none."""
    if not folder.is_dir():
        raise ValueError(f'{folder} does not exist. Give a folder of tar files: --cfg-options data_root=DIR.')
    tars = sorted(folder.glob(shards))
    packed = sorted(path.name for path in folder.iterdir() if PACKED.search(path.name.lower()))
    advice = f'{packed[0]} is compressed: unpack it (gzip -d, bzip2 -d, xz -d or zstd -d).' if packed else ''
    if not tars:
        advice = advice or 'For a folder of images use mkd_plugin.ImageFolder.'
        raise ValueError(f'{folder} has no {shards}. {advice}')
    return tars, f'{folder}: {len(packed)} files are left out. {advice}' if packed else ''
