"""Accumulators against all examples at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mkd_plugin.analysis import ImageMean, PerLayer
from mkd_plugin.analysis.streaming import CrossScatter


def test_image_mean__weights_by_images():
    """The mean of a batch of 3 and one of 1 is not the mean of their means."""
    mean = ImageMean()
    mean.update(torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]))
    mean.update(torch.tensor([[10.0, 0.0]]))
    assert mean.result().tolist() == [4.0, 15.0]
    assert mean.result().dtype == torch.float64 and mean.images == 4


def test_image_mean__sums_in_float64():
    """In float32, 2²⁴ + 1 is 2²⁴."""
    mean = ImageMean()
    for value in (2.0**24, 1.0, 1.0, 1.0):
        mean.update(torch.tensor([value]))
    assert mean.result().item() == (2**24 + 3) / 4


def test_image_mean__empty_batches_change_nothing():
    mean = ImageMean(name='block:0')
    mean.update(torch.zeros(0, 2))
    with pytest.raises(ValueError, match='block:0: no image was measured'):
        mean.result()
    mean.update(torch.ones(1, 2))
    mean.update(torch.zeros(0, 2))
    assert mean.result().tolist() == [1, 1]


@pytest.mark.parametrize('sizes', [(10,), (4, 4, 2), (1,) * 10, (3, 0, 7)])
def test_cross_scatter__any_split(sizes):
    x, y = torch.randn(10, 3, dtype=torch.float64) + 2, torch.randn(10, 2, dtype=torch.float64) - 7
    scatter = CrossScatter()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        scatter.update(a, b)
    wanted = (x - x.mean(0)).T @ (y - y.mean(0))
    torch.testing.assert_close(scatter.scatter_CE, wanted, rtol=1e-12, atol=1e-12)
    scatter = CrossScatter()
    scatter.update(x, x)
    np.testing.assert_allclose(scatter.scatter_CE / 9, np.cov(x.numpy().T), rtol=1e-12)


def test_per_layer__one_accumulator_a_layer():
    layers = PerLayer(lambda name: ImageMean(name=name))
    for value in (1.0, 3.0):
        layers('block:0', torch.tensor([value]))
        layers('block:1', torch.tensor([value * 10]))
    assert {name: value.item() for name, value in layers.results().items()} == {'block:0': 2, 'block:1': 20}
    assert layers.layers['block:1'].name == 'block:1'
