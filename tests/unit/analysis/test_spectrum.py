"""Singular spectra against the published numbers, numpy's SVD of the covariance, and any split into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.published import published_tokens

from mkd_plugin.analysis import ImageSpectrum, TokenSpectrum, TopRatio

GRID, PREFIX = (3, 4), 2
OPTIONS = dict(grid=GRID, num_prefix=PREFIX)


@pytest.fixture
def tokens():
    """Seven images of two prefix tokens and a grid of 3 × 4, width 5."""
    return torch.randn(7, PREFIX + 12, 5, dtype=torch.float64)


def run(accumulator, *batches):
    for batch in batches:
        accumulator.update(batch)
    return accumulator.result()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_top_ratio__published_values(dtype):
    found = run(TopRatio(grid=(14, 14), num_prefix=0), published_tokens().to(dtype))
    assert found.tolist() == pytest.approx([0.141801, 0.274256, 0.402240, 0.522608, 0.642134], abs=1e-6)


@pytest.mark.parametrize('width', [5, 12, 20])
def test_top_ratio__equals_svd_image_by_image(width):
    tokens = torch.randn(4, PREFIX + 12, width, dtype=torch.float64)
    ratios = []
    for image in tokens[:, PREFIX:].numpy():
        values = np.linalg.svd(image / np.linalg.norm(image, axis=1, keepdims=True), compute_uv=False)
        ratios.append([values[: k + 1].sum() / values.sum() for k in range(3)])
    found = run(TopRatio(**OPTIONS, k=3), tokens)
    assert found.tolist() == pytest.approx(np.mean(ratios, axis=0).tolist(), rel=1e-10)


@pytest.mark.parametrize('width', [5, 12, 20])
def test_token_spectrum__equals_svd_of_every_covariance(width):
    """Wider than long, the covariance has 11 singular values that are not rounding."""
    tokens = torch.randn(4, PREFIX + 12, width, dtype=torch.float64) + 3
    logs = [
        np.log(np.linalg.svd(np.cov(image.T, ddof=1), compute_uv=False)[: min(11, width)])
        for image in tokens[:, PREFIX:].numpy()
    ]
    wanted = np.mean(logs, axis=0)
    found = run(TokenSpectrum(**OPTIONS), tokens)
    assert found.log_R.tolist() == pytest.approx(wanted.tolist(), abs=1e-8)
    assert found.relative_R.tolist() == pytest.approx((wanted - wanted[0]).tolist(), abs=1e-8)
    assert found.images == 4


@pytest.mark.parametrize('images', [3, 40])
def test_image_spectrum__equals_svd_of_the_covariance(images):
    """Tokens are averaged first; three images have a covariance of rank 2."""
    tokens = torch.randn(images, PREFIX + 12, 5, dtype=torch.float64)
    covariance = np.cov(tokens[:, PREFIX:].numpy().mean(axis=1).T, ddof=1)
    wanted = np.log(np.linalg.svd(covariance, compute_uv=False)[: min(images - 1, 5)])
    found = run(ImageSpectrum(**OPTIONS), tokens)
    assert found.log_R.tolist() == pytest.approx(wanted.tolist(), abs=1e-8)
    assert found.relative_R[0] == 0 and found.images == images


@pytest.mark.parametrize('kind', [TopRatio, TokenSpectrum, ImageSpectrum])
@pytest.mark.parametrize('sizes', [(3, 3, 1), (1, 6), (1,) * 7])
def test_spectrum__any_split_into_batches(tokens, kind, sizes):
    once, split = (run(kind(**OPTIONS), *tokens.split(size)) for size in (7, sizes))
    if kind is not TopRatio:
        assert split.images == 7
        once, split = once.log_R, split.log_R
    torch.testing.assert_close(once, split, rtol=1e-10, atol=1e-10)


def test_token_spectrum__a_dead_channel_is_not_minus_infinity():
    """Its singular value counts as rounding: 2^−52 of the largest."""
    tokens = torch.randn(2, 14, 5, dtype=torch.float64)
    tokens[..., 0] = 4.0
    found = run(TokenSpectrum(**OPTIONS), tokens)
    assert found.relative_R[-1].item() == pytest.approx(np.log(2.0**-52))


def test_image_spectrum__large_mean_loses_nothing():
    """Means of 1e6 with a spread of 1: subtracting squares would leave three digits."""
    pooled = torch.randn(64, 1, 3, dtype=torch.float64)
    near, far = (run(ImageSpectrum(grid=(1, 1), num_prefix=0), *(pooled + at).split(5)).log_R for at in (0.0, 1e6))
    torch.testing.assert_close(near, far, rtol=0, atol=1e-8)


def test_spectrum__too_few_images_or_tokens_for_a_rank(tokens):
    assert len(run(ImageSpectrum(**OPTIONS), tokens[:3]).log_R) == 2
    for images in (0, 1):
        with pytest.raises(ValueError, match=f'{images} images give a covariance of rank 0'):
            run(ImageSpectrum(**OPTIONS), tokens[:images])
    with pytest.raises(ValueError, match=r'block:1: k=6, but 12 tokens of width 5 have 5 singular values'):
        run(TopRatio(**OPTIONS, k=6, name='block:1'), tokens)
    with pytest.raises(ValueError, match='needs at least two patches'):
        TokenSpectrum(grid=(1, 1))


def test_spectrum__collapsed_features_are_named():
    same = torch.ones(3, 14, 5)
    for kind in (TokenSpectrum, ImageSpectrum):
        with pytest.raises(ValueError, match='block:1: all features are equal'):
            run(kind(**OPTIONS, name='block:1'), same)
    with pytest.raises(ValueError, match='block:1: all tokens of an image are zero'):
        run(TopRatio(**OPTIONS, name='block:1'), same * 0)


@pytest.mark.parametrize('kind', [TopRatio, TokenSpectrum, ImageSpectrum])
def test_spectrum__not_finite_or_another_grid(tokens, kind):
    with pytest.raises(ValueError, match=r'block:1: tokens must have the shape \(B, 2 \+ 4 · 4, D\)'):
        kind(grid=(4, 4), num_prefix=2, name='block:1').update(tokens)
    tokens[0, 5, 2] = torch.nan
    with pytest.raises(ValueError, match='block:1: 1 of 490 values are NaN'):
        kind(**OPTIONS, name='block:1').update(tokens)
