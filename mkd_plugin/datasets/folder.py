"""Unlabelled pre-training on any folder of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpretrain.datasets import CustomDataset

from mkd_plugin.datasets.replace import ReplaceUnreadable
from mkd_plugin.registry import DATASETS

__all__ = ['EXTENSIONS', 'ImageFolder']

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp', '.gif')


@DATASETS.register_module()
class ImageFolder(ReplaceUnreadable, CustomDataset):
    """Every image below a folder, however deeply nested, without labels; or those of a list.

    An image that cannot be read is replaced: see :class:`ReplaceUnreadable`.

    Args:
        data_root: The folder.
        data_prefix: A folder below it.
        ann_file: A list of paths below the folder, one a line, instead of what is found there.
        extensions: What counts as an image, in any case.
        max_unreadable: How many different files may be unreadable; one more is an error.
        options: Those of mmpretrain's ``CustomDataset``: ``pipeline``, ``indices``, ….

    Raises:
        ValueError: There is no such folder or list, it cannot be read, or there is no image in it.
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
        if not data_root:
            raise ValueError("data_root='': give the folder of the images.")
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
        """The paths, sorted."""
        folder = str(self.img_prefix)
        local = '://' not in folder  # elsewhere the file backend says what is wrong
        if local and not Path(folder).is_dir():
            what = 'is a file, not a folder' if Path(folder).exists() else 'does not exist'
            raise ValueError(f'{folder} {what}. Give a folder of images: --cfg-options data_root=DIR.')
        if self.ann_file and local and not Path(self.ann_file).is_file():
            raise ValueError(f'The list {self.ann_file} does not exist: one path below {folder} a line.')
        try:
            images: list[dict[str, str]] = super().load_data_list()
        except OSError as error:
            raise ValueError(f'{folder} cannot be read: {error}. Check its rights and its disk.') from error
        except RuntimeError:  # mmpretrain's for "none"
            images = []
        if not images:
            raise ValueError(f'{self.ann_file or folder} has no images{self._what_else(folder) if local else ""}.')
        return images

    def _what_else(self, folder: str) -> str:
        """What is there instead of images."""
        if self.ann_file:
            return ': the list is empty'
        kinds = Counter(path.suffix.lower() or path.name for path in Path(folder).rglob('*') if path.is_file())
        found = ', '.join(f'{count} × {kind}' for kind, count in kinds.most_common(4)) or 'nothing'
        if '.tar' in kinds:
            found += ' (for tar shards: train_dataloader.dataset.type=mkd_plugin.ShardDataset)'
        return f' ({", ".join(sorted(self.extensions))}), but {found}. Give another data_root, or extensions'
