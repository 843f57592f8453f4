"""The order of a data set's samples, divided among any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dataset import DefaultSampler
from numpy.typing import NDArray

from mkd_plugin.registry import DATA_SAMPLERS
from mkd_plugin.utils.draws import derive_seed, permute

AT_ONCE = 4096  # places looked up together


@DATA_SAMPLERS.register_module()
class ElasticSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` with one order of the samples, which depends on seed and epoch only.

    Process r of W takes every W-th sample from r on, so that W batches of size G / W are the next G samples for every W.
    Nothing is stored: each process computes the places that it needs, also of 10⁹ samples.

    Args:
        dataset: The samples.
        shuffle: Whether to shuffle them, anew in each epoch.
        seed: Seed of the order, the same on every process; drawn if None.
        round_up: Repeat up to W − 1 samples, so that every process has as many; otherwise leave up to W − 1 out, as
            ``train_dataloader.drop_last`` does with the rest. Set it to the opposite of ``drop_last``: the number of batches
            then depends on G alone.
    """

    def __init__(self, dataset: Sized, *, shuffle: bool = True, seed: int | None = None, round_up: bool = True) -> None:
        super().__init__(dataset, shuffle, seed, round_up)
        if not round_up:
            self.num_samples = len(dataset) // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Go through this process's samples of the epoch that ``set_epoch`` set."""
        for start in range(0, self.num_samples, AT_ONCE):
            turns = np.arange(start, min(start + AT_ONCE, self.num_samples))
            yield from self.samples_at((self.rank + turns * self.world_size) % len(self.dataset)).tolist()

    def samples_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up the samples at these places of the epoch's order."""
        if not self.shuffle:
            return places
        return permute(places, len(self.dataset), derive_seed('order', self.seed, self.epoch))
