"""A shuffled order of which each process reads its own part of the shards, whatever the number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkd_plugin.datasets.sampler import ElasticSampler
from mkd_plugin.registry import DATA_SAMPLERS
from mkd_plugin.utils.draws import derive_seed, permute


@DATA_SAMPLERS.register_module()
class ShardSampler(ElasticSampler):
    """Shuffles shards, and images within windows of them, for data that lie on storage or do not fit into memory.

    The shuffled shards, laid end to end, are cut into ``lanes`` equal parts, and each lane into windows, whose images are
    shuffled. The order of an epoch takes one image of every lane in turn; like every :class:`ElasticSampler`'s, it is the same
    for any number of processes. If that number divides ``lanes``, each process has lanes of its own: a node reads its own part
    of the shards only, one window of each of its lanes at a time. With another number shards are read by several nodes.

    Args:
        dataset: A :class:`ShardDataset`.
        lanes: A multiple of the numbers of processes that may be used.
        window: Images of a lane that are shuffled among each other. A node's cache should hold ``lanes`` · ``window`` images
            divided by the number of nodes.
        options: Those of :class:`ElasticSampler`.

    Raises:
        ValueError: The data set has no shards, or ``lanes`` or ``window`` is below 1.
    """

    def __init__(self, dataset: Any, *, lanes: int = 64, window: int = 2048, **options: Any) -> None:
        if min(lanes, window) < 1:
            raise ValueError(f'lanes={lanes}, window={window}: give 1 or more.')
        starts = getattr(getattr(dataset, 'data_list', None), 'starts', None)
        if starts is None:
            raise ValueError(
                f'ShardSampler needs a mkd_plugin.ShardDataset, not {type(dataset).__name__}: use ElasticSampler.'
            )
        super().__init__(dataset, **options)
        self.starts, self.lanes, self.window = starts, lanes, window
        self._row: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def samples_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up the samples at these places of the epoch's order."""
        if self._row is None or self._row[0] != self._key('shards'):
            shards = permute(np.arange(len(self.starts) - 1), len(self.starts) - 1, self._key('shards'))
            self._row = self._key('shards'), shards, np.diff(self.starts)[shards].cumsum()
        _, shards, ends = self._row  # where the shuffled shards, laid end to end, end
        found = self._in_lanes(places)
        turn = np.searchsorted(ends, found, 'right')
        return self.starts[1:][shards[turn]] - (ends[turn] - found)  # counted from the ends

    def _in_lanes(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up the positions among the shuffled shards."""
        length, longer = divmod(len(self.dataset), self.lanes)  # the first lanes have one image more
        rows, lanes = np.divmod(places, self.lanes)
        starts = lanes * length + np.minimum(lanes, longer)
        found = np.empty_like(places)
        windows, group = np.unique(lanes * (length + 1) + rows // self.window, return_inverse=True)
        for number, (lane, window) in enumerate(zip(*np.divmod(windows, length + 1), strict=True)):
            here = group == number
            size = min(self.window, length + int(lane < longer) - int(window) * self.window)
            inside = permute(rows[here] % self.window, size, self._key('window', int(lane), int(window)))
            found[here] = starts[here] + window * self.window + inside
        return found

    def _key(self, *what: int | str) -> int:
        return derive_seed('order', self.seed, self.epoch, *what)
