"""One order of the samples for any number of processes, also from any batch on."""

from __future__ import annotations

import pytest
from mmengine.dataset import DefaultSampler
from torch.utils.data import BatchSampler, DataLoader

from mkd_plugin.datasets import ElasticSampler
from mkd_plugin.engine.exact_resume import make_exact


def sampler(size, rank=0, ranks=1, *, monkeypatch, **options):
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, ranks))
    return ElasticSampler(range(size), **{'seed': 3, **options})


def global_batches(size, ranks, *, drop_last, epoch=0, images=16, monkeypatch):
    """The samples of each global batch, in the order of its rows."""
    parts = []
    for rank in range(ranks):
        own = sampler(size, rank, ranks, round_up=not drop_last, monkeypatch=monkeypatch)
        own.set_epoch(epoch)
        batches = BatchSampler(own, images // ranks, drop_last)
        parts.append(list(batches))
        assert len(parts[-1]) == len(batches)
    return [[row for turn in zip(*rows, strict=True) for row in turn] for rows in zip(*parts, strict=True)]


@pytest.mark.parametrize('size', [1440, 1439, 1441, 40])
@pytest.mark.parametrize('drop_last', [True, False])
def test_elastic_sampler__global_batches_do_not_depend_on_the_processes(size, drop_last, monkeypatch):
    """mmengine's sampler has a batch more on four processes than on one for 1,439 samples."""
    alone = global_batches(size, 1, drop_last=drop_last, monkeypatch=monkeypatch)
    assert len(set(sum(alone, []))) == len(sum(alone, [])) == (size // 16 * 16 if drop_last else size)
    for ranks in (2, 4, 16):
        found = global_batches(size, ranks, drop_last=drop_last, monkeypatch=monkeypatch)
        last = [] if drop_last else [found.pop()[: len(alone[-1])]]  # then up to `ranks` − 1 samples of the order again
        assert found + last == alone


def test_elastic_sampler__epochs_and_seeds_have_orders_of_their_own(monkeypatch):
    first, again, second = (
        global_batches(100, 2, drop_last=False, epoch=epoch, monkeypatch=monkeypatch) for epoch in (0, 0, 1)
    )
    assert first == again != second
    other = sampler(100, seed=4, monkeypatch=monkeypatch)
    assert list(other) != list(sampler(100, monkeypatch=monkeypatch))
    assert list(sampler(10, shuffle=False, monkeypatch=monkeypatch)) == list(range(10))
    assert isinstance(other, DefaultSampler)


def test_elastic_sampler__starts_anywhere_in_a_billion(monkeypatch):
    """mmengine's would store 44 GB."""
    place = iter(sampler(10**9, 5, 4096, monkeypatch=monkeypatch))
    assert len({next(place) for _ in range(100)}) == 100


def test_make_exact__goes_on_from_any_batch(monkeypatch):
    position = [2, 0]
    loader = DataLoader(range(20), batch_size=3, sampler=sampler(20, monkeypatch=monkeypatch), drop_last=True)
    exact = make_exact(loader, seed=5, position=lambda: tuple(position), endless=False)
    whole = [batch.tolist() for batch in exact]
    position[1] = 4
    assert [batch.tolist() for batch in exact] == whole[4:] and len(whole) == 6
