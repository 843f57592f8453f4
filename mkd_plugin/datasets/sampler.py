"""The order of a data set's samples and the random numbers of each, for any number of processes and workers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any, cast

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from mkd_plugin.registry import DATA_SAMPLERS
from mkd_plugin.utils.draws import derive_seed, permute

Place = tuple[int, int]  # (epoch, index): what the sampler sends to the workers
Position = Callable[[], tuple[int, int]]  # returns (epoch, batch)


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


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, and CUDA's if it is in use.

    ``torch.manual_seed`` takes 0.3 ms where CUDA is not in use, too long to call for every sample.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # never in a worker
        torch.cuda.manual_seed_all(seed)


class SeededDataset(Dataset[Any]):
    """Seeds the augmentation of each sample from (seed, epoch, index), in any process and loading order.

    The epoch is sent with the index, because the data sets inside persistent workers cannot be told about it. All other
    attributes, assignments included, are the wrapped data set's: hosts' hooks replace its ``pipeline``.
    """

    def __init__(self, dataset: Any, *, seed: int) -> None:
        self.__dict__.update(dataset=dataset, seed=seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place | int) -> Any:
        epoch, index = place if isinstance(place, tuple) else (0, place)
        seed_generators(derive_seed('sample', self.seed, epoch, index))
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # absent during unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


class ExactBatches(Sampler[list[Place]]):
    """Batches of (epoch, index), from any position of the run onwards.

    The order within an epoch is that of the host's sampler, which is told the epoch or, if it has no ``set_epoch``, draws
    from a generator seeded with it. The order of :class:`InfiniteSampler` is replaced: (seed, p) chooses the permutation of
    pass p.

    ``position`` returns the (epoch, batch) to start from, and is called when an iteration starts. ``endless`` batches continue
    with the next epoch instead of stopping.
    """

    def __init__(self, loader: DataLoader[Any], *, seed: int, position: Position, endless: bool) -> None:
        self.batches = cast(Any, loader.batch_sampler)
        self.sampler: Any = self.batches.sampler
        self.batch_size, self.drop_last = self.batches.batch_size, self.batches.drop_last
        self.seed, self.position, self.endless = seed, position, endless
        if hasattr(self.sampler, 'seed'):
            self.sampler.seed = seed  # under diff_rank_seed mmengine draws another one when it builds the loader

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, start = self.position()
        if isinstance(self.sampler, InfiniteSampler):
            yield from self._stream(epoch * len(self) + start)
        yield from islice(self._epoch(epoch), start, None)
        while self.endless:
            epoch += 1
            yield from self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[list[Place]]:
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)
        seed_generators(derive_seed('order', self.seed, epoch))  # torch's own samplers draw from these
        for batch in self.batches:
            yield [(epoch, index) for index in batch]

    def _stream(self, batch: int) -> Iterator[list[Place]]:
        """This rank's batches of an endless stream of permutations."""
        size, turns, ranks = len(self.sampler.dataset), np.arange(self.batch_size), self.sampler.world_size
        for number in count(batch):
            passes, places = np.divmod((number * self.batch_size + turns) * ranks + self.sampler.rank, size)
            for one in np.unique(passes) if self.sampler.shuffle else ():
                own = passes == one
                places[own] = permute(places[own], size, derive_seed('order', self.seed, one))
            yield list(zip(passes.tolist(), places.tolist(), strict=True))
