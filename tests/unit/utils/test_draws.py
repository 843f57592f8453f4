"""Draws are functions of seed, name and row of the global batch: the same for any number of processes, and random."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch

from mkd_plugin.utils.draws import derive_seed, draw_uniform, permute, start_step

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def no_step():
    """Leave the process as it was."""
    yield
    start_step(None)


@pytest.mark.parametrize('ranks', [2, 4])
@pytest.mark.parametrize('rows', [0, 1, 2])
def test_draw_uniform__processes_draw_their_rows_of_the_global_batch(rows, ranks):
    size = [3, 5, 7]
    size[rows] = 8
    start_step(5)
    whole = draw_uniform('mask', size, rows, CPU)
    assert whole.shape == tuple(size) and whole.dtype == torch.float32 and whole.is_contiguous()
    size[rows] = 8 // ranks
    for rank in range(ranks):
        start_step(5, rank=rank, ranks=ranks)
        assert torch.equal(draw_uniform('mask', size, rows, CPU), whole.movedim(rows, 0)[rank::ranks].movedim(0, rows))


def test_draw_uniform__depends_on_seed_name_and_row_only():
    start_step(5)
    drawn = draw_uniform('mask', (4, 6), 0, CPU)
    torch.manual_seed(1)
    assert torch.equal(draw_uniform('mask', (4, 6), 0, CPU), drawn)
    assert torch.equal(draw_uniform('mask', (4, 3), 0, CPU), drawn[:, :3])
    assert not (draw_uniform('drop path', (4, 6), 0, CPU) == drawn).any()
    start_step(6)
    assert not (draw_uniform('mask', (4, 6), 0, CPU) == drawn).any()
    assert draw_uniform('mask', (0, 6), 0, CPU).shape == (0, 6)


def test_draw_uniform__without_a_step_is_torchs_generator():
    torch.manual_seed(3)
    wanted = torch.rand(4, 6)
    torch.manual_seed(3)
    assert torch.equal(draw_uniform('mask', (4, 6), 0, CPU), wanted)


def test_draw_uniform__is_uniform_and_independent():
    """Chi-square of 64 bins (111 is exceeded once in 10,000), and correlations of neighbours within five standard errors."""
    drawn = []
    for step in range(2):
        start_step(derive_seed('step', step))
        drawn.append(draw_uniform('mask', (1000, 196), 0, CPU).double().numpy())
    here, later = drawn
    counts = np.histogram(here, 64, (0, 1))[0]
    assert here.min() >= 0 and here.max() < 1 and ((counts - here.size / 64) ** 2 / (here.size / 64)).sum() < 111
    for one, other in (
        (here[1:], here[:-1]),
        (here[:, 1:], here[:, :-1]),
        (here[1:, 1:], here[:-1, :-1]),
        (here, later),
    ):
        assert abs(((one - 0.5) * (other - 0.5)).mean() * 12) < 5 / math.sqrt(one.size)


def test_draw_uniform__compiled_without_a_break_draws_anew_in_each_step():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: x + draw_uniform('mask', (4, 6), 0, x.device), fullgraph=True, backend='aot_eager'
    )
    for seed in (5, 6):
        start_step(seed)
        assert torch.equal(compiled(torch.zeros(4, 6)), draw_uniform('mask', (4, 6), 0, CPU))


@pytest.mark.parametrize('size', [1, 2, 3, 7, 26, 1000, 1440])
def test_permute__is_a_permutation(size):
    orders = [permute(np.arange(size), size, derive_seed(key)).tolist() for key in range(3)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 7 or orders[0] != orders[1] != orders[2]
    assert permute(np.array([size - 1, 0]), size, derive_seed(0)).tolist() == [orders[0][-1], orders[0][0]]


@pytest.mark.parametrize('size', [5, 24])
def test_permute__every_pair_of_places_is_as_likely(size):
    """Chi-square of where two places go, over 4,000 keys, against its mean plus five standard deviations."""
    pairs = np.zeros((size, size))
    for key in range(4000):
        first, second = permute(np.array([0, size // 2]), size, derive_seed('order', key))
        pairs[first, second] += 1
    free = size * (size - 1)
    wanted = 4000 / free
    assert pairs.trace() == 0
    chi_square = ((pairs - wanted) ** 2 / wanted)[~np.eye(size, dtype=bool)].sum()
    assert chi_square < free + 5 * math.sqrt(2 * free)


def test_permute__of_a_billion_stores_nothing():
    tracemalloc.start()
    places = permute(np.arange(4096), 10**9, 3)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert len(set(places.tolist())) == 4096 and places.max() < 10**9 and abs(places.mean() / 10**9 - 0.5) < 0.03
