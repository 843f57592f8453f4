"""Target normalisations against torch and against plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch.nn import functional as F

from mkd_plugin.models.targets import L2Normalize, TokenStandardize


def test_token_standardize__biased_is_layer_norm_without_affine():
    target = torch.randn(2, 5, 7, dtype=torch.float64) * 3 + 1
    found = TokenStandardize(unbiased=False, eps=1e-5)(target)
    torch.testing.assert_close(found, F.layer_norm(target, (7,), eps=1e-5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('eps', [1e-6, 0.5])
def test_token_standardize__unbiased_equals_python(eps):
    """dBOT and MAE: variance over D − 1, eps inside the root; unbiased by default."""
    target = torch.randn(2, 3, 5, dtype=torch.float64)
    found = TokenStandardize(eps=eps)(target).flatten(0, 1).tolist()
    for token, row in zip(target.flatten(0, 1).tolist(), found, strict=True):
        mean, scale = statistics.fmean(token), math.sqrt(statistics.variance(token) + eps)
        assert row == pytest.approx([(value - mean) / scale for value in token], abs=1e-12)


def test_token_standardize__unbiased_equals_mmpretrains_norm_pix(images):
    from mmpretrain.models import MAEPretrainHead

    head = MAEPretrainHead(loss=dict(type='PixelReconstructionLoss', criterion='L2'), norm_pix=True, patch_size=4)
    found = TokenStandardize(unbiased=True)(head.patchify(images))
    torch.testing.assert_close(found, head.construct_target(images), rtol=1e-12, atol=1e-12)


def test_token_standardize__constant_token_gives_zeros():
    assert not TokenStandardize()(torch.full((1, 1, 8), 3.0)).any()


def test_l2_normalize__equals_python():
    target = torch.randn(2, 3, 5, dtype=torch.float64)
    found = L2Normalize()(target).flatten(0, 1).tolist()
    for token, row in zip(target.flatten(0, 1).tolist(), found, strict=True):
        assert row == pytest.approx([value / math.hypot(*token) for value in token], abs=1e-12)
    assert not L2Normalize()(torch.zeros(1, 4)).any()
