"""The order of a data set's samples, divided among any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mmengine.dataset import DefaultSampler
from numpy.typing import NDArray

from mkd_plugin.registry import DATA_SAMPLERS
from mkd_plugin.utils.draws import derive_seed, permute


@DATA_SAMPLERS.register_module()
class ElasticSampler(DefaultSampler):
    """mmengine's ``DefaultSampler``, with the same global batches of G samples for any number W of processes.

    The order depends on seed and epoch; process r takes every W-th sample from r on, so that W batches of G / W are the next
    G samples. No order is stored: each process computes its places, also among 10⁹.

    With ``round_up`` up to W − 1 samples are repeated, so that every process has as many; otherwise as many are left out. Set
    it to the opposite of the loader's ``drop_last``: the number of batches then depends on G only.
    """

    def __len__(self) -> int:
        return int(len(self.dataset) + self.round_up * (self.world_size - 1)) // int(self.world_size)

    def __iter__(self) -> Iterator[int]:
        """Go through this process's samples of the epoch that ``set_epoch`` set."""
        for start in range(0, len(self), 4096):
            turns = np.arange(start, min(start + 4096, len(self)))
            places = (self.rank + turns * self.world_size) % len(self.dataset)
            yield from (self.samples_at(places) if self.shuffle else places).tolist()

    def samples_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up the samples at these places of the epoch's order."""
        return permute(places, len(self.dataset), derive_seed('order', self.seed, self.epoch))
