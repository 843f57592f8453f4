"""Random numbers as a pure function of where the run is, so that nothing has to be saved to repeat them."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler


def derive_seed(*key: int | str) -> int:
    """A seed in [0, 2^63) that depends on ``key`` alone; those of different keys have nothing to do with each other.

    Sums such as ``seed + epoch`` would give the second epoch of one run the numbers of the first of another.
    """
    plain = [part if isinstance(part, str) else int(part) for part in key]  # a sampler may give numpy's integers
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), 'big') >> 1


def seed_generators(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (of CUDA where it is in use, without waiting for it).

    ``torch.manual_seed`` does the same and takes 0.3 ms where CUDA is not in use, too much for every sample.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # never in a worker
        torch.cuda.manual_seed_all(seed)


def base_seed(runner: Runner) -> int:
    """The run's seed, the same on every rank: mmengine's own is different on each under ``diff_rank_seed``."""
    return int(runner.seed) - (get_rank() if (runner._randomness_cfg or {}).get('diff_rank_seed') else 0)


def at_optimizer_step(runner: Runner, done: int) -> bool:
    """Whether the optimiser has stepped after ``done`` iterations, so that no accumulated gradient is pending."""
    counts: int = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    return done % counts == 0 or done >= runner.max_iters


Place = tuple[int, int]  # (epoch, index): what the sampler sends to the workers
OPTIONS = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'multiprocessing_context', 'prefetch_factor')


class SeededDataset(Dataset[Any]):
    """Draws the augmentation of a sample from (seed, epoch, index), in whatever process and order it is loaded.

    The epoch comes with the index: a persistent worker has a copy of the data set that no one can tell the epoch.
    All else is the data set's own, also assignments: hosts' hooks replace its ``pipeline``.

    Args:
        dataset: Any map-style data set.
        seed: The run's seed.
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
        if name == 'dataset' or name.startswith('__'):  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


class ExactBatches(Sampler[list[Place]]):
    """Batches of (epoch, index) from any point of the run on.

    The order within an epoch is the host's sampler's, told the epoch (or, if it cannot be told, drawn from a generator
    seeded with it). That of :class:`InfiniteSampler` is replaced: pass p is a permutation drawn from (seed, p), so that
    starting anywhere costs one permutation instead of all before it.

    Args:
        loader: The host's loader.
        seed: The run's seed, the same on every rank.
        position: Gives (epoch, batch) to start from, asked when an iteration starts.
        endless: Go on with the next epoch instead of stopping.
    """

    def __init__(
        self, loader: DataLoader[Any], *, seed: int, position: Callable[[], tuple[int, int]], endless: bool
    ) -> None:
        self.batches = cast(Any, loader.batch_sampler)
        self.sampler: Any = self.batches.sampler
        self.batch_size, self.drop_last = self.batches.batch_size, self.batches.drop_last
        self.seed, self.position, self.endless = seed, position, endless
        if hasattr(self.sampler, 'seed'):
            self.sampler.seed = seed  # mmengine draws another one while it builds the loader under diff_rank_seed

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
        seed_generators(derive_seed('order', self.seed, epoch))  # what torch's own samplers draw from
        for batch in self.batches:
            yield [(epoch, index) for index in batch]

    def _stream(self, batch: int) -> Iterator[list[Place]]:
        """Batches of this rank's share of one endless stream of permutations."""
        size, ranks = len(self.sampler.dataset), self.sampler.world_size
        place, current, order = batch * self.batch_size * ranks + self.sampler.rank, -1, list(range(size))
        while True:
            places = []
            for _ in range(self.batch_size):
                epoch, offset = divmod(place, size)
                if epoch != current and self.sampler.shuffle:
                    generator = torch.Generator().manual_seed(derive_seed('order', self.seed, epoch))
                    current, order = epoch, torch.randperm(size, generator=generator).tolist()
                places.append((epoch, order[offset]))
                place += ranks
            yield places


class ExactLoader(DataLoader[Any]):
    """A loader that says what to do when one of its workers dies."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except (RuntimeError, EOFError, ConnectionError) as error:  # it depends on what was being waited for
            from_data = 'Caught' in str(error) or not self.num_workers
            if from_data or (isinstance(error, RuntimeError) and 'DataLoader worker' not in str(error)):
                raise
            raise RuntimeError(
                f'A process that loads data died ({str(error).strip() or type(error).__name__}). Most often the machine '
                'ran out of memory (lower train_dataloader.num_workers or prefetch_factor) or of shared memory (enlarge '
                '/dev/shm). Start the run again with resume=True: it goes on from its last checkpoint to the same result.'
            ) from error


class EndlessBatches:
    """In place of the iterator in mmengine's ``IterBasedTrainLoop``: it starts where the run is and never sleeps.

    Args:
        loader: A loader with endless :class:`ExactBatches`.
        swallow: Number of calls that the loop makes only to reach the position of a resumed run (mmengine < 0.10.6).
    """

    def __init__(self, loader: ExactLoader, *, swallow: int = 0) -> None:
        self.loader, self.swallow = loader, swallow
        self.batches: Iterator[Any] | None = None

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> Any:
        if self.swallow:
            self.swallow -= 1
            return None
        if self.batches is None:  # only now, when the loop knows its position
            self.batches = iter(self.loader)
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Nothing to skip."""


def why_not_exact(loader: DataLoader[Any], *, endless: bool) -> str | None:
    """Why the order of a loader cannot be repeated from any point; None if it can."""
    if isinstance(loader.dataset, IterableDataset):
        return f'{type(loader.dataset).__name__} gives its samples in its own order'
    if loader.batch_sampler is None:
        return 'its samples are not batched by the loader (batch_size=None)'
    if isinstance(loader.sampler, InfiniteSampler) or isinstance(
        getattr(loader.batch_sampler, 'sampler', None), InfiniteSampler
    ):
        if type(loader.batch_sampler) is not BatchSampler:
            return f'{type(loader.batch_sampler).__name__} groups an endless order in its own way'
        if not endless:
            return 'InfiniteSampler never ends an epoch: use DefaultSampler, or an IterBasedTrainLoop'
    return None


def make_exact(
    loader: DataLoader[Any], *, seed: int, position: Callable[[], tuple[int, int]], endless: bool
) -> ExactLoader:
    """The same loader with seeded samples in an order that can be entered anywhere; arguments of ExactBatches."""
    options = {name: getattr(loader, name) for name in OPTIONS}
    return ExactLoader(
        SeededDataset(loader.dataset, seed=seed),
        batch_sampler=ExactBatches(loader, seed=seed, position=position, endless=endless),
        worker_init_fn=partial(start_worker, then=loader.worker_init_fn),
        persistent_workers=loader.persistent_workers,
        generator=torch.Generator(),  # or each epoch would draw a number from the run's own
        **options,
    )


def start_worker(worker: int, *, then: Callable[[int], Any] | None) -> None:
    """Let only the main process end a worker: a scheduler signals all, and the main process still needs batches."""
    if hasattr(signal, 'sigwaitinfo'):
        signals = {signal.SIGTERM, signal.SIGUSR1}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=obey_parent, args=(signals,), daemon=True).start()
    if then is not None:
        then(worker)


def obey_parent(signals: set[signal.Signals]) -> None:
    """Leave at a signal from the main process, which python sends when it ends; take no notice of others' signals."""
    while signal.sigwaitinfo(signals).si_pid != os.getppid():
        pass
    os._exit(0)
