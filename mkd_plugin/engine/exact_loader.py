"""Loaders whose samples and batches are functions of the seed and of the position in the run."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any, cast

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from mkd_plugin.utils.draws import derive_seed, permute

LOADER_OPTIONS = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'multiprocessing_context', 'prefetch_factor')
ORPHAN_CHECK = 5.0  # seconds
Place = tuple[int, int]  # (epoch, index): what the sampler sends to the workers
Position = Callable[[], tuple[int, int]]  # returns (epoch, batch)


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


class LoaderDied(ChildProcessError, RuntimeError):
    """A process that loads data died. An OSError, of which the commands print the message alone."""


class ExactLoader(DataLoader[Any]):
    """A loader that explains the death of a worker process."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except (RuntimeError, EOFError, ConnectionError) as error:  # the type depends on what torch was waiting for
            from_data = 'Caught' in str(error) or not self.num_workers
            if from_data or (isinstance(error, RuntimeError) and 'DataLoader worker' not in str(error)):
                raise
            raise LoaderDied(
                f'A process that loads data died ({str(error).strip() or type(error).__name__}). Most often the machine '
                'ran out of memory (lower train_dataloader.num_workers or prefetch_factor) or of shared memory (enlarge '
                '/dev/shm). Start the run again with resume=True: it continues from its last checkpoint, to the same result.'
            ) from error


class EndlessBatches:
    """Replaces the iterator of mmengine's ``IterBasedTrainLoop``: starts at the run's position and never sleeps.

    ``ignored`` calls are made by the loop only to reach the position of a resumed run (mmengine < 0.10.6).
    """

    def __init__(self, loader: ExactLoader, *, ignored: int = 0) -> None:
        self.loader, self.ignored = loader, ignored
        self.batches: Iterator[Any] | None = None

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> Any:
        if self.ignored:
            self.ignored -= 1
            return None
        if self.batches is None:  # the loop does not know its position earlier
            self.batches = iter(self.loader)
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the batches already start at the right position."""


def why_not_exact(loader: DataLoader[Any], *, endless: bool) -> str | None:
    """Why the order of a loader cannot be reproduced from any position; None if it can."""
    if isinstance(loader.dataset, IterableDataset):
        return f'{type(loader.dataset).__name__} chooses the order of its samples itself'
    if loader.batch_sampler is None:
        return 'its samples are not batched by the loader (batch_size=None)'
    if isinstance(getattr(loader.batch_sampler, 'sampler', None), InfiniteSampler):
        if type(loader.batch_sampler) is not BatchSampler:
            return f'{type(loader.batch_sampler).__name__} regroups an endless order'
        if not endless:
            return 'InfiniteSampler never ends an epoch: use DefaultSampler, or an IterBasedTrainLoop'
    return None


def make_exact(loader: DataLoader[Any], *, seed: int, position: Position, endless: bool) -> ExactLoader:
    """Rebuild a loader with seeded samples in an order that can start anywhere. Raises ValueError if it has no batch."""
    if len(loader) == 0:
        raise ValueError(
            f'train_dataloader: {len(loader.dataset)} samples fill no batch of {loader.batch_size} on every process, and '  # type: ignore[arg-type]
            'drop_last=True leaves out the rest. Lower batch_size, or set drop_last=False.'
        )
    return ExactLoader(
        SeededDataset(loader.dataset, seed=seed),
        batch_sampler=ExactBatches(loader, seed=seed, position=position, endless=endless),
        worker_init_fn=partial(start_worker, then=loader.worker_init_fn),
        generator=torch.Generator(),  # otherwise each epoch draws a number from the run's own generator
        persistent_workers=loader.persistent_workers,
        **{name: getattr(loader, name) for name in LOADER_OPTIONS},
    )


def start_worker(worker: int, *, then: Callable[[int], Any] | None) -> None:
    """Let only the main process end a worker.

    A scheduler and Ctrl-C signal all processes of a run, and the main one still needs batches until it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigtimedwait'):
        signals = {signal.SIGTERM, signal.SIGUSR1}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=obey_parent, args=(signals, os.getppid()), daemon=True).start()
    if then is not None:
        then(worker)


def obey_parent(signals: set[signal.Signals], parent: int) -> None:
    """Exit on a signal from the main process, which Python sends when it ends, or when that is gone; ignore other processes.

    A worker that was sending a batch when the main process was killed would wait for ever, and keep its memory.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait(signals, ORPHAN_CHECK)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
