"""What happens to images that cannot be read."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.datasets.base_dataset import BaseDataset

from mkd_plugin.datasets.loading import UnreadableImageError

__all__ = ['ReplaceUnreadable']


class ReplaceUnreadable(BaseDataset):
    """A dataset in which an image that cannot be read when its turn comes is replaced by the next one that can.

    So a run depends on nothing but the files. Such an image is reported once, with its path; ``unreadable`` counts them over
    all workers of this process. Only what :class:`LoadAnyImage` calls unreadable is replaced: a mistake in the rest of the
    pipeline is raised.

    Args:
        max_unreadable: How many different images may be unreadable; one more is an error.
        options: Those of the dataset class that it is mixed into.

    Raises:
        ValueError: ``max_unreadable`` is negative.
    """

    def __init__(self, *, max_unreadable: int, **options: Any) -> None:
        if max_unreadable < 0:
            raise ValueError(f'max_unreadable={max_unreadable}: give 0 (none may be) or more.')
        self.max_unreadable = max_unreadable
        super().__init__(**options)

    def full_init(self) -> None:
        """List the images, and make the marks that the workers share."""
        if self._fully_initialized:
            return
        super().full_init()
        marks = torch.zeros(len(self), dtype=torch.bool)
        self._marks: torch.Tensor = marks.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def unreadable(self) -> int:
        """How many different files could not be read so far, by all workers of this process."""
        return int(self._marks.sum())

    def __getitem__(self, idx: int) -> Any:
        """The image, or the next one that can be read.

        Raises:
            ValueError: More than ``max_unreadable`` files cannot be read.
        """
        self.full_init()
        idx %= len(self)
        for step in range(len(self)):
            candidate = (idx + step) % len(self)
            try:
                sample = self.prepare_data(candidate)
            except UnreadableImageError as error:
                self._report(candidate, error)
                continue
            if sample is not None:  # a transform may refuse an image by giving None
                return sample
        raise ValueError(f'None of the {len(self)} images of {self.img_prefix} can be used; the reasons are above.')

    def _report(self, idx: int, error: UnreadableImageError) -> None:
        """Mark a file; say so if it is new."""
        if self._marks[idx]:
            return
        self._marks[idx] = True
        if self.unreadable > self.max_unreadable:
            raise ValueError(
                f'{self.unreadable} images of {self.img_prefix} cannot be read, and max_unreadable={self.max_unreadable} '
                f'may be. The latest is {error}. Repair or remove them, or allow more.'
            ) from error
        print_log(
            f'{error}; the next image takes its place (unreadable so far: {self.unreadable})',
            logger='current',
            level=logging.WARNING,
        )
