"""Attention distance, entropy and NMI against the published numbers and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.published import published_attention

from mkd_plugin.analysis import AttentionStatistics, attention_nmi, patch_distances

GRID, PATCH, PREFIX = (3, 4), 8, 2


def measure(*batches, grid=(14, 14), patch_size=16, num_prefix=0, flavour='cl-vs-mim'):
    found = AttentionStatistics(grid=grid, patch_size=patch_size, num_prefix=num_prefix, flavour=flavour)
    for batch in batches:
        found.update(batch)
    return found.result()


def random_attention(images=5, heads=3):
    return torch.randn(images, heads, PREFIX + 12, PREFIX + 12, dtype=torch.float64).mul(2).softmax(dim=-1)


@pytest.mark.parametrize(
    ('name', 'distance', 'nmi'),
    [('uniform', 116.492227, 0.0), ('identity', 0.0, 0.99999283), ('near', 26.598038, 0.36577444)],
)
@pytest.mark.parametrize('flavour', ['cl-vs-mim', 'dbot'])
def test_attention_statistics__published_values(name, distance, nmi, flavour):
    found = measure(published_attention()[name][None, None], flavour=flavour)
    assert found.flavour == flavour and found.images == 1
    assert found.distance_H.tolist() == [pytest.approx(distance, abs=5e-7)]
    assert found.nmi_H.tolist() == [pytest.approx(nmi, abs=5e-9)]


@pytest.mark.parametrize(('flavour', 'distance'), [('dbot', 21.278431), ('cl-vs-mim', 26.598038)])
def test_attention_statistics__a_fifth_of_every_row_to_cls(flavour, distance):
    attention = torch.full((1, 1, 197, 197), 1 / 197, dtype=torch.float64)
    attention[0, 0, 1:, 0] = 0.2
    attention[0, 0, 1:, 1:] = 0.8 * published_attention()['near']
    found = measure(attention, num_prefix=1, flavour=flavour)
    assert found.distance_H.item() == pytest.approx(distance, abs=5e-7)
    assert found.nmi_H.item() == pytest.approx(0.36577444, abs=1e-6)  # the 1e-8 is added before rows are renormalised


def test_attention_statistics__entropy_of_known_rows():
    uniform, identity = (measure(published_attention()[name][None, None]) for name in ('uniform', 'identity'))
    assert uniform.entropy_H.item() == pytest.approx(math.log(196))
    assert uniform.entropy_fraction_H.item() == pytest.approx(1)
    assert identity.entropy_H.item() == pytest.approx(0, abs=1e-20)


def by_loops(attention, flavour):
    """Distance, entropy and NMI of one image and head, number by number."""
    length, columns = 12, GRID[1]
    a = [[attention[PREFIX + q, PREFIX + k].item() for k in range(length)] for q in range(length)]
    even = [[value / sum(row) for value in row] for row in a]
    rows = even if flavour == 'cl-vs-mim' else a
    distance = entropy = 0.0
    for q in range(length):
        for k in range(length):
            apart = PATCH * math.dist(divmod(q, columns), divmod(k, columns))
            distance += rows[q][k] * apart / length
            entropy -= even[q][k] * math.log(even[q][k]) / length
    raised = [[value + 1e-8 for value in row] for row in a]
    joint = [[value / sum(row) / length for value in row] for row in raised]
    of_key = [sum(joint[q][k] for q in range(length)) for k in range(length)]
    mutual = sum(joint[q][k] * math.log(joint[q][k] * length / of_key[k]) for q in range(length) for k in range(length))
    key_entropy = -sum(p * math.log(p) for p in of_key)
    return distance, entropy, mutual / math.sqrt(math.log(length) * key_entropy)


@pytest.mark.parametrize('flavour', ['cl-vs-mim', 'dbot'])
def test_attention_statistics__equals_loops(flavour):
    """A grid of 3 × 4, two prefix tokens, patches of 8 pixels, three heads; means over images."""
    attention = random_attention()
    found = measure(attention, grid=GRID, patch_size=PATCH, num_prefix=PREFIX, flavour=flavour)
    for head in range(3):
        rows = [by_loops(image[head], flavour) for image in attention]
        distance, entropy, nmi = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        assert found.distance_H[head].item() == pytest.approx(distance, rel=1e-12)
        assert found.entropy_H[head].item() == pytest.approx(entropy, rel=1e-12)
        assert found.entropy_fraction_H[head].item() == pytest.approx(entropy / math.log(12), rel=1e-12)
        assert found.nmi_H[head].item() == pytest.approx(nmi, rel=1e-9)


@pytest.mark.parametrize('sizes', [(5,), (2, 2, 1), (1, 4), (1,) * 5])
def test_attention_statistics__any_split_into_batches(sizes):
    attention = random_attention()
    options = dict(grid=GRID, patch_size=PATCH, num_prefix=PREFIX)
    found, wanted = measure(*attention.split(sizes), **options), measure(attention, **options)
    assert found.images == 5
    for key in ('distance_H', 'entropy_H', 'entropy_fraction_H', 'nmi_H'):
        torch.testing.assert_close(getattr(found, key), getattr(wanted, key), rtol=1e-13, atol=0)


def test_attention_statistics__half_precision_is_widened():
    """bfloat16 has three digits; distances of the values that it holds are exact to float32's."""
    attention = random_attention().bfloat16()
    options = dict(grid=GRID, patch_size=PATCH, num_prefix=PREFIX)
    found, wanted = measure(attention, **options), measure(attention.double(), **options)
    torch.testing.assert_close(found.distance_H, wanted.distance_H, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.nmi_H, wanted.nmi_H, rtol=1e-4, atol=0)


def test_attention_statistics__a_row_that_only_sees_cls():
    """Nothing is left of it: an even row for entropy, 0 pixels for dbot, and no NaN."""
    attention = torch.zeros(1, 1, 5, 5)
    attention[..., 0] = 1
    found = measure(attention, grid=(2, 2), num_prefix=1, flavour='dbot')
    assert found.distance_H.item() == 0
    assert found.entropy_fraction_H.item() == pytest.approx(1)
    assert found.nmi_H.item() == pytest.approx(0, abs=1e-6)


def test_patch_distances__row_major():
    distances_LL = patch_distances((2, 3), 4)
    assert distances_LL[0].tolist() == [0, 4, 8, 4, pytest.approx(4 * math.sqrt(2)), pytest.approx(4 * math.sqrt(5))]


def test_attention_nmi__collapse_and_one_to_one():
    alike = torch.rand(12, dtype=torch.float64).softmax(0).expand(1, 1, 12, 12)
    moved = torch.eye(12, dtype=torch.float64)[torch.randperm(12)][None, None]
    assert attention_nmi(alike).item() == pytest.approx(0, abs=1e-12)
    assert attention_nmi(moved).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((1, 1, 13, 13), r'block:3: .*\(B, H, 14, 14\) for 2 prefix tokens and a grid of 3 × 4, got \(1, 1, 13, 13\)'),
        ((1, 14, 14), 'Give the grid and the number of prefix tokens'),
        ((1, 1, 1, 14), 'got'),
    ],
)
def test_attention_statistics__wrong_shape(shape, message):
    found = AttentionStatistics(grid=GRID, patch_size=8, num_prefix=2, flavour='dbot', name='block:3')
    with pytest.raises(ValueError, match=message):
        found.update(torch.zeros(shape))


def test_attention_statistics__not_finite_names_the_layer():
    found = AttentionStatistics(grid=(1, 2), patch_size=8, num_prefix=0, flavour='dbot', name='block:3')
    with pytest.raises(ValueError, match='block:3: 1 of 4 values are NaN or infinite'):
        found.update(torch.tensor([[[[0.5, 0.5], [torch.nan, 0.5]]]]))


def test_attention_statistics__logits_are_no_attention():
    found = AttentionStatistics(grid=(1, 2), patch_size=8, num_prefix=0, flavour='dbot', name='block:3')
    for values in ([[1.5, -0.5], [0.5, 0.5]], [[1.0, 1.0], [0.5, 0.5]]):
        with pytest.raises(ValueError, match='Give attention after softmax'):
            found.update(torch.tensor([[values]]))


def test_attention_statistics__options():
    with pytest.raises(ValueError, match=r"flavour='dino': use one of \['cl-vs-mim', 'dbot'\]"):
        AttentionStatistics(grid=GRID, patch_size=8, flavour='dino')
    with pytest.raises(ValueError, match=r'grid=\(1, 1\): attention between patches needs at least two'):
        AttentionStatistics(grid=(1, 1), patch_size=8, flavour='dbot')
    with pytest.raises(ValueError, match='block:0: no image was measured'):
        AttentionStatistics(grid=GRID, patch_size=8, flavour='dbot', name='block:0').result()
