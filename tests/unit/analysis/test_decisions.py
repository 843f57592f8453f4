"""Shape bias and error consistency on tables made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from mkd_plugin.analysis import ErrorConsistency, ShapeBias, coarse_decisions, coarse_probabilities

CLASSES = {'cat': [0, 3], 'car': [1], 'clock': [2, 4, 5]}


def test_shape_bias__table_by_hand():
    """Six conflicts: 3 for the shape, 1 for the texture, 2 for neither; one row without a conflict is dropped."""
    rows = [
        ('cat', 'cat', 'car'),
        ('cat', 'cat', 'clock'),
        ('clock', 'cat', 'clock'),
        ('clock', 'cat', 'car'),
        ('car', 'car', 'cat'),
        ('clock', 'car', 'cat'),
        ('cat', 'cat', 'cat'),
    ]
    found = ShapeBias()
    for part in (rows[:4], rows[4:]):
        found.update(*zip(*part, strict=True))
    result = found.result()
    assert (result.shape, result.texture, result.other, result.dropped) == (3, 1, 2, 1)
    assert result.bias == 0.75
    assert result.by_class == {'car': 1.0, 'cat': pytest.approx(2 / 3)}


def test_shape_bias__never_right_is_no_number():
    found = ShapeBias()
    found.update(['clock'], ['cat'], ['car'])
    assert math.isnan(found.result().bias) and math.isnan(found.result().by_class['cat'])


def test_shape_bias__bad_input():
    found = ShapeBias()
    with pytest.raises(ValueError, match=r'one entry per image: the lengths are \[1, 2, 1\]'):
        found.update(['cat'], ['cat', 'car'], ['car'])
    found.update(['cat'], ['cat'], ['cat'])
    with pytest.raises(ValueError, match='shape and texture have different classes; there was none'):
        found.result()


def test_coarse_probabilities__mean_of_probabilities_not_of_logits():
    logits = torch.tensor([[1.0, 2.0, 0.5, 3.0, -1.0, 0.0]])
    total = sum(math.exp(value) for value in logits[0].tolist())
    wanted = [
        (math.exp(1) + math.exp(3)) / 2 / total,
        math.exp(2) / total,
        (math.exp(0.5) + math.exp(-1) + 1) / 3 / total,
    ]
    assert coarse_probabilities(logits, CLASSES)[0].tolist() == pytest.approx(wanted, rel=1e-12)


def test_coarse_decisions__large_classes_have_no_advantage():
    """Three fine classes of 0.2 each sum to more than one of 0.3, but their mean is less."""
    probabilities = torch.tensor([[0.05, 0.3, 0.2, 0.05, 0.2, 0.2], [0.4, 0.1, 0.1, 0.2, 0.1, 0.1]])
    assert coarse_decisions(probabilities.log(), CLASSES) == ['car', 'cat']


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ({'cat': [0, 6]}, r'id from 0 to 5 .* out of range: \[6\]'),
        ({'cat': [-1]}, r'out of range: \[-1\]'),
        ({'cat': [0], 'car': []}, r"Empty: \['car'\]"),
        ({'cat': [0, 1], 'car': [1]}, r'in two classes: \[1\]'),
        ({}, 'at least one fine class'),
    ],
)
def test_coarse_probabilities__bad_class_map(classes, message):
    with pytest.raises(ValueError, match=message):
        coarse_probabilities(torch.zeros(1, 6), classes)


def test_coarse_probabilities__logits_not_finite():
    with pytest.raises(ValueError, match='logits: 1 of 6 values are NaN'):
        coarse_probabilities(torch.tensor([[0, 0, torch.nan, 0, 0, 0]]), CLASSES)


def test_error_consistency__table_by_hand():
    """Both right 4, both wrong 2, first only 3, second only 1: observed 0.6, expected 0.7 · 0.5 + 0.3 · 0.5 = 0.5."""
    first = [True] * 4 + [False] * 2 + [True] * 3 + [False]
    second = [True] * 4 + [False] * 2 + [False] * 3 + [True]
    found = ErrorConsistency()
    found.update(first[:7], second[:7])
    found.update(first[7:], second[7:])
    assert found.result() == pytest.approx((0.6 - 0.5) / (1 - 0.5))


def test_error_consistency__equals_scikit_learns_kappa():
    first, second = torch.rand(2, 200) < torch.tensor([[0.8], [0.6]])
    found = ErrorConsistency()
    found.update(first.tolist(), second)
    assert found.result() == pytest.approx(cohen_kappa_score(first.numpy(), second.numpy()), rel=1e-12)


def test_error_consistency__extremes():
    for first, second, wanted in (
        ([True, False], [True, False], 1),
        ([True, False], [False, True], -1),
        ([True, True, False, False], [True, False, True, False], 0),
    ):
        found = ErrorConsistency()
        found.update(first, second)
        assert found.result() == pytest.approx(wanted)
    found = ErrorConsistency()
    found.update([True, True], [True, True])
    assert math.isnan(found.result())


def test_error_consistency__bad_input():
    found = ErrorConsistency()
    with pytest.raises(ValueError, match='at least one image'):
        found.result()
    with pytest.raises(ValueError, match=r'lengths are \[2, 1\]'):
        found.update([True, False], [True])
