"""Fourier amplitudes and variance of feature maps against the published numbers and against loops."""

from __future__ import annotations

import cmath
import math
import statistics

import pytest
import torch
from helpers.published import published_tokens

from mkd_plugin.analysis import FeatureMapVariance, FourierAmplitude

GRID, PREFIX = (3, 4), 2


@pytest.fixture
def tokens():
    """Seven images of two prefix tokens and a grid of 3 × 4, width 5."""
    return torch.randn(7, PREFIX + 12, 5, dtype=torch.float64)


def run(accumulator, *batches):
    for batch in batches:
        accumulator.update(batch)
    return accumulator.result()


def test_fourier_amplitude__published_values():
    found = run(FourierAmplitude(grid=(14, 14), num_prefix=0), published_tokens())
    wanted = [0, 0.751101, 0.339236, 0.182773, -0.563027, -0.655567, -0.796571]
    assert found.relative_F.tolist() == pytest.approx(wanted, abs=5e-7)
    assert found.frequency_F[-1].item() == pytest.approx(6 / 7)


def test_feature_map_variance__published_value():
    assert run(FeatureMapVariance(grid=(14, 14), num_prefix=0), published_tokens()) == pytest.approx(
        0.50234258, abs=5e-9
    )


@pytest.mark.parametrize('grid', [(3, 4), (4, 3), (5, 5), (2, 6), (12, 1)])
def test_fourier_amplitude__equals_loops(grid):
    """Shifted by half the transform has frequency 0 at (gh // 2, gw // 2); from there along the diagonal to the edge."""
    height, width = grid
    tokens = torch.randn(3, PREFIX + height * width, 2, dtype=torch.float64)
    shifted = {}
    for u in range(height):
        for v in range(width):
            logs = []
            for image in tokens[:, PREFIX:]:
                for channel in image.T.tolist():
                    terms = (
                        value * cmath.exp(-2j * math.pi * (u * (i // width) / height + v * (i % width) / width))
                        for i, value in enumerate(channel)
                    )
                    logs.append(math.log(abs(sum(terms)) + 1e-6))
            shifted[(u + height // 2) % height, (v + width // 2) % width] = statistics.fmean(logs)
    diagonal = [shifted[key] for k in range(height) if (key := (height // 2 + k, width // 2 + k)) in shifted]
    found = run(FourierAmplitude(grid=grid, num_prefix=PREFIX), tokens)
    assert found.relative_F.tolist() == pytest.approx([value - diagonal[0] for value in diagonal], abs=1e-9)
    assert found.frequency_F.tolist() == [2 * k / min(grid) for k in range(len(diagonal))]


def test_feature_map_variance__equals_loops(tokens):
    wanted = statistics.fmean(
        statistics.variance(image[PREFIX:, channel].tolist()) for image in tokens for channel in range(5)
    )
    assert run(FeatureMapVariance(grid=GRID, num_prefix=PREFIX), tokens) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize('sizes', [(7,), (3, 3, 1), (1, 6)])
def test_feature_maps__any_split_into_batches(tokens, sizes):
    amplitude = [run(FourierAmplitude(grid=GRID, num_prefix=PREFIX), *tokens.split(size)) for size in (7, sizes)]
    torch.testing.assert_close(amplitude[0].relative_F, amplitude[1].relative_F, rtol=1e-12, atol=1e-13)
    variance = [run(FeatureMapVariance(grid=GRID, num_prefix=PREFIX), *tokens.split(size)) for size in (7, sizes)]
    assert variance[0] == pytest.approx(variance[1], rel=1e-13)
    assert amplitude[1].images == 7


def test_feature_maps__bad_input(tokens):
    broken = tokens.clone()
    broken[1, 3, 2] = torch.inf
    for kind in (FourierAmplitude, FeatureMapVariance):
        with pytest.raises(
            ValueError, match=r'block:2: tokens must have the shape \(B, 1 \+ 3 · 4, D\), got \(7, 14, 5\)'
        ):
            kind(grid=GRID, num_prefix=1, name='block:2').update(tokens)
        with pytest.raises(ValueError, match='block:2: 1 of 490 values are NaN or infinite'):
            kind(grid=GRID, num_prefix=PREFIX, name='block:2').update(broken)
        with pytest.raises(ValueError, match='no image'):
            kind(grid=GRID).result()
    with pytest.raises(ValueError, match='at least two patches'):
        FeatureMapVariance(grid=(1, 1))
