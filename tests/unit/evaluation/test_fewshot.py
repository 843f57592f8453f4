from __future__ import annotations

import math

import pytest
import torch

from mkd_plugin.evaluation.features import Feature, Features
from mkd_plugin.evaluation.fewshot import best_rate, draw_shots, few_shot
from mkd_plugin.evaluation.linear import ProbeSettings, train_probes

A = Feature()
QUICK = ProbeSettings(rates=(0.01, 1.0), epochs=10, warmup=1, batch_size=64)


def classes(images: int, seed: int) -> Features:
    """Four overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(images) % 4
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.randn(images, 8, generator=generator, dtype=torch.float64)
    return Features({A: centres[labels_N] + noise}, labels_N)


def test_draw_shots__balanced_nested_and_repeatable():
    labels_N = torch.tensor([0, 1, 1, 0, 3, 3, 1, 0, 3])
    two, three = draw_shots(labels_N, 2, draw=5), draw_shots(labels_N, 3, draw=5)
    assert labels_N[two].tolist() == [0, 0, 1, 1, 3, 3]
    assert len(set(two.tolist())) == 6 and set(two.tolist()) < set(three.tolist())
    assert draw_shots(labels_N, 2, draw=5).equal(two)
    assert any(not draw_shots(labels_N, 2, draw=draw).equal(two) for draw in range(4))


def test_few_shot__is_the_best_rate_over_draws():
    train, val = classes(80, 0), classes(120, 1)
    found = few_shot(train, val, A, shots=4, draws=3, settings=QUICK)
    scores = {rate: [] for rate in QUICK.rates}
    for draw in range(3):
        rows = draw_shots(train.labels_N, 4, draw)
        subset = Features({A: train.values[A][rows]}, train.labels_N[rows])
        for head in train_probes(subset, val, QUICK):
            scores[head.rate].append(head.top1)
    best = max(scores, key=lambda rate: sum(scores[rate]))
    assert (found.shots, found.rate, found.draws) == (4, best, tuple(scores[best]))
    mean = sum(scores[best]) / 3
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(math.sqrt(sum((top1 - mean) ** 2 for top1 in scores[best]) / 2))


def test_few_shot__more_labels_help():
    train, val = classes(400, 0), classes(200, 1)
    few, many = (few_shot(train, val, A, shots=shots, draws=2, settings=QUICK).mean for shots in (2, 64))
    assert many > few > 25


def test_best_rate__diverged_rates_do_not_count():
    found = best_rate(2, (0.1, 1.0), [(50.0, math.nan), (60.0, 99.0)])
    assert (found.rate, found.mean) == (0.1, 55.0)
    assert best_rate(2, (0.1,), [(50.0,)]).std == 0
    with pytest.raises(ValueError, match='diverged'):
        best_rate(2, (0.1,), [(math.nan,)])


def test_few_shot__bad_input():
    train = classes(20, 0)
    with pytest.raises(ValueError, match='smallest class has 5 images'):
        few_shot(train, train, A, shots=6)
    with pytest.raises(ValueError, match='draws=0'):
        few_shot(train, train, A, shots=2, draws=0)
