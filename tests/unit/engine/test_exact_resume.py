"""Order and augmentation of samples are functions of seed and position, in any process."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset, RandomSampler

from mkd_plugin.engine import exact_resume
from mkd_plugin.engine.exact_resume import (
    EndlessBatches,
    SeededDataset,
    derive_seed,
    make_exact,
    start_worker,
    why_not_exact,
)


def test_derive_seed__depends_on_the_whole_key_and_on_nothing_else():
    assert derive_seed('sample', 1, 2, 3) == derive_seed('sample', 1, np.int64(2), 3) == 5066753196748408918
    keys = [('sample', 1, 2), ('sample', 2, 1), ('order', 1, 2), ('sample', 12), ('sample', 1, 2, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(number) < 2**63 for number in range(1000))


class Noise(Dataset):
    """Gives what all three generators draw."""

    metainfo = dict(classes='noise')
    pipeline = 'first'

    def __init__(self, size: int = 10):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_dataset__draws_from_epoch_and_index_only():
    data = SeededDataset(Noise(), seed=3)
    first = data[(2, 5)]
    random.seed(), np.random.seed(), torch.seed()
    assert data[(2, 5)] == first and data[5] != first and data[(2, 6)][1:] != first[1:] and data[(3, 5)] != first
    assert SeededDataset(Noise(), seed=4)[(2, 5)] != first


def test_seeded_dataset__is_otherwise_the_data_set_itself():
    inner = Noise()
    data = SeededDataset(inner, seed=3)
    data.pipeline = 'second'  # as mmengine's SwitchRecipeHook does
    assert inner.pipeline == 'second' and data.metainfo == inner.metainfo and len(data) == 10
    assert not hasattr(data, '__getitems__') and not hasattr(data, 'nothing')


def loader(sampler, size=10, workers=0, batch=3, **options):
    data = Noise(size)
    return DataLoader(data, batch_size=batch, sampler=sampler(data), num_workers=workers, **options)


def batches(exact, count):
    iterator = iter(exact)
    return [[column.tolist() for column in next(iterator)] for _ in range(count)]


@pytest.mark.parametrize('workers, persistent', [(0, False), (2, False), (2, True)])
def test_make_exact__epochs_repeat_from_any_batch_in_any_number_of_workers(workers, persistent):
    position = [0, 0]

    def made(workers, persistent=False):
        source = loader(lambda data: DefaultSampler(data, seed=99), workers=workers, persistent_workers=persistent)
        return make_exact(source, seed=5, position=lambda: tuple(position), endless=False)

    plain, tried = made(0), made(workers, persistent)
    seen = []
    for epoch in range(3):
        position[:] = epoch, 0
        seen.append(batches(plain, 4))
        assert [[column.tolist() for column in batch] for batch in tried] == seen[-1]
        assert sorted(sum((batch[0] for batch in seen[-1]), [])) == list(range(10))
        position[:] = epoch, 3
        assert [[column.tolist() for column in batch] for batch in tried] == seen[-1][3:]
        position[:] = epoch, 4
        assert list(tried) == []
    assert len(plain) == 4 and seen[0] != seen[1] != seen[2]
    place = [batch[0] for batch in seen[0]], [batch[0] for batch in seen[1]]
    assert place[0] != place[1]


def test_make_exact__refuses_an_epoch_without_a_batch():
    few = DataLoader(range(3), batch_size=4, drop_last=True)
    with pytest.raises(ValueError, match='3 samples fill no batch of 4.*Lower batch_size, or set drop_last=False'):
        make_exact(few, seed=5, position=lambda: (0, 0), endless=False)


@pytest.mark.parametrize('sampler', [lambda data: InfiniteSampler(data), RandomSampler])
def test_make_exact__endless_order_repeats_from_any_batch(sampler):
    position = [0]

    def made():
        return make_exact(loader(sampler), seed=5, position=lambda: divmod(position[0], 4), endless=True)

    position[0] = 0
    whole = batches(made(), 20)
    for start in (1, 4, 7, 13):
        position[0] = start
        torch.seed()
        assert batches(made(), 5) == whole[start : start + 5]


def test_make_exact__stream_is_permutation_after_permutation_shared_by_the_ranks():
    def made(rank):
        sampler = InfiniteSampler(Noise())
        sampler.rank, sampler.world_size = rank, 2
        return make_exact(loader(lambda data: sampler), seed=5, position=lambda: (0, 0), endless=True)

    first, second = (sum((batch[0] for batch in batches(made(rank), 10)), []) for rank in range(2))
    together = [index for pair in zip(first, second, strict=True) for index in pair]
    for number in range(6):
        assert sorted(together[number * 10 : (number + 1) * 10]) == list(range(10))
    assert together[:10] != together[10:20]


def test_why_not_exact__names_what_cannot_be_repeated():
    assert 'never ends an epoch' in why_not_exact(loader(InfiniteSampler), endless=False)
    assert 'batch_size=None' in why_not_exact(DataLoader(Noise(), batch_size=None), endless=True)
    assert why_not_exact(loader(InfiniteSampler), endless=True) is None


def test_endless_batches__swallows_what_an_old_loop_skips():
    exact = make_exact(loader(InfiniteSampler), seed=5, position=lambda: (0, 2), endless=True)
    old = EndlessBatches(exact, ignored=2)
    assert [next(old), next(old)] == [None, None] and next(old)[0].tolist() == batches(exact, 1)[0][0]


@pytest.mark.parametrize('ours', [True, False])
def test_exact_loader__says_what_to_do_when_a_worker_dies(monkeypatch, ours):
    """Torch's error comes from a signal handler, in whatever line the main process is: here it is raised by hand."""
    message = (
        'DataLoader worker (pid 7) is killed by signal: Killed.' if ours else 'Caught ValueError in DataLoader worker'
    )

    def die(self):
        yield 1
        raise RuntimeError(message)

    monkeypatch.setattr(DataLoader, '__iter__', die)
    batches = iter(make_exact(DataLoader(range(4), num_workers=1), seed=0, position=lambda: (0, 0), endless=False))
    assert next(batches) == 1
    wanted = r'A process that loads data died .*Killed.*num_workers.*resume=True' if ours else '^Caught ValueError'
    with pytest.raises(RuntimeError, match=wanted):
        next(batches)


TERMINATED = """
import os, signal, time
from torch.utils.data import DataLoader
from mkd_plugin.engine.exact_resume import make_exact

iterator = iter(make_exact(
    DataLoader(range(1000), batch_size=2, num_workers=1, persistent_workers=True),
    seed=0, position=lambda: (0, 0), endless=True,
))
next(iterator)
worker = iterator.gi_yieldfrom._workers[0]
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    sender = os.fork()  # a scheduler is not the worker's parent
    if not sender:
        os.kill(worker.pid, number)
        os._exit(0)
    os.waitpid(sender, 0)
time.sleep(0.2)
assert worker.is_alive()
for _ in range(10):
    next(iterator)
print('alive')
"""


def test_start_worker__leaves_signals_to_the_main_process_and_ends_with_it():
    ended = subprocess.run([sys.executable, '-c', TERMINATED], capture_output=True, text=True, timeout=60)
    assert (ended.stdout.split()[-1:], ended.returncode) == (['alive'], 0), ended.stderr[-2000:]


class Broken(Noise):
    def __getitem__(self, index):
        raise RuntimeError('this image is broken')


def test_exact_loader__leaves_errors_of_the_data_alone():
    source = DataLoader(Broken(), batch_size=2, num_workers=1)
    with pytest.raises(RuntimeError, match='this image is broken') as caught:
        list(make_exact(source, seed=0, position=lambda: (0, 0), endless=False))
    assert 'loads data died' not in str(caught.value)


def wait_as_worker(pids):
    start_worker(0, then=None)
    pids.put(os.getpid())
    threading.Event().wait()


def start_one_worker(pids):
    multiprocessing.get_context('fork').Process(target=wait_as_worker, args=(pids,)).start()
    threading.Event().wait()


def is_alive(pid):
    status = Path(f'/proc/{pid}/stat')
    return status.exists() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads the state of processes in /proc')
def test_worker__ends_when_the_main_process_was_killed(monkeypatch):
    monkeypatch.setattr(exact_resume, 'ORPHAN_CHECK', 0.1)
    context = multiprocessing.get_context('fork')
    pids = context.Queue()
    main = context.Process(target=start_one_worker, args=(pids,))
    main.start()
    worker = pids.get(timeout=30)
    assert is_alive(worker)
    main.kill()
    main.join()
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)
