"""Linear CKA: invariances, its definition written out, and any split into batches."""

from __future__ import annotations

import pytest
import torch

from mkd_plugin.analysis import LinearCKA, linear_cka


def features(*widths, examples=40):
    return {f'block:{i}': torch.randn(examples, width, dtype=torch.float64) + i for i, width in enumerate(widths)}


def by_kernels(x, y):
    """HSIC(XXᵀ, YYᵀ) over the root of its products with itself, with the centring matrix."""
    size = len(x)
    centre = torch.eye(size, dtype=torch.float64) - 1 / size

    def hsic(a, b):
        return torch.trace(a @ a.T @ centre @ b @ b.T @ centre)

    return (hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item()


def test_linear_cka__rotated_scaled_and_shifted_copy():
    x = features(6)['block:0']
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-12)


def test_linear_cka__not_invariant_to_any_linear_map():
    x = features(6)['block:0']
    stretched = x * torch.tensor([10.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    assert linear_cka(x, stretched) < 0.9
    assert linear_cka(x, stretched) == pytest.approx(by_kernels(x, stretched), rel=1e-12)


def test_linear_cka__independent_features_and_symmetry():
    x, y = features(3, 5, examples=4000).values()
    assert linear_cka(x, y) < 0.01
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-12)


def test_linear_cka_table__two_networks():
    first, second = features(4, 3), features(5, 2, 6)
    cka = LinearCKA()
    cka.update(first, second)
    found = cka.result()
    assert found.values_RS.shape == (2, 3) and found.examples == 40
    assert found.rows == ['block:0', 'block:1'] and found.columns == ['block:0', 'block:1', 'block:2']
    for i, x in enumerate(first.values()):
        for j, y in enumerate(second.values()):
            assert found.values_RS[i, j].item() == pytest.approx(by_kernels(x, y), rel=1e-10)


def test_linear_cka_table__layers_of_one_network():
    first = features(4, 3, 5)
    cka = LinearCKA()
    cka.update(first)
    found = cka.result()
    assert found.rows == found.columns
    torch.testing.assert_close(found.values_RS.diag(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.values_RS, found.values_RS.T, rtol=0, atol=0)
    wanted = by_kernels(first['block:0'], first['block:2'])
    assert found.values_RS[2, 0].item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize('sizes', [(39, 1), (1,) * 40, (17, 17, 6)])
@pytest.mark.parametrize('networks', [1, 2])
def test_linear_cka_table__any_split_into_batches(sizes, networks):
    sides = [features(4, 3), features(5, 2)][:networks]
    once, split = LinearCKA(), LinearCKA()
    once.update(*sides)
    for part in range(len(sizes)):
        split.update(*({name: x.split(sizes)[part] for name, x in side.items()} for side in sides))
    torch.testing.assert_close(split.result().values_RS, once.result().values_RS, rtol=1e-11, atol=0)
    assert split.result().examples == 40


def test_linear_cka__bad_input():
    x = features(4)['block:0']
    with pytest.raises(ValueError, match=r"same N examples at every layer, got {'x': \(40, 4\), 'y': \(39, 4\)}"):
        linear_cka(x, x[1:])
    with pytest.raises(ValueError, match='same N examples at every layer'):
        linear_cka(x[None], x[None])
    with pytest.raises(ValueError, match='at least two examples, got 1'):
        linear_cka(x[:1], x[:1])
    with pytest.raises(ValueError, match='at least two examples, got 0'):
        LinearCKA().result()
    with pytest.raises(ValueError, match='y: the features are the same for all examples'):
        linear_cka(x, torch.ones(40, 2))
    with pytest.raises(ValueError, match='y: 1 of 160 values are NaN'):
        linear_cka(x, x.where(x != x[3, 2], torch.nan))


def test_linear_cka__other_layers_than_before():
    cka, first = LinearCKA(), features(4, 3)
    cka.update(first)
    with pytest.raises(ValueError, match='the layers of this batch are'):
        cka.update({'block:0': first['block:0']})
    with pytest.raises(ValueError, match='those of earlier ones'):
        cka.update(first, first)
