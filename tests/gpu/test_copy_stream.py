"""Batches are copied and resized in a stream of their own; the step gets the same images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mkd_plugin.datasets.crops import Crop, CropOrder, collate_crops
from mkd_plugin.models.preprocessor import CropPreprocessor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]


def test_preprocessor__copies_while_the_step_before_is_computed():
    random, batches = np.random.default_rng(0), []
    for _ in range(6):
        sides = random.integers(40, 90, size=(16, 2))
        crops = [Crop(random.integers(0, 256, (*side, 3), np.uint8), CropOrder((64, 64))) for side in sides.tolist()]
        batch = collate_crops([dict(inputs=crop, data_samples=None) for crop in crops])['inputs']
        pinned = dict(pixels=batch.pixels.pin_memory(), table_B4=batch.table_B4.pin_memory())
        batches.append(dict(inputs=batch._replace(**pinned)))
    preprocessor = CropPreprocessor(mean=[120.0] * 3, std=[60.0] * 3, non_blocking=True).cuda()
    alone = [preprocessor._make_images(batch['inputs']) for batch in batches]
    torch.cuda.synchronize()
    sums, wanted = [], [images.double().sum() for images in alone]
    for batch in batches:
        images = preprocessor(batch)['inputs']
        torch.cuda._sleep(20_000_000)  # a step that reads its images late
        sums.append(images.double().sum())
        del images
    torch.testing.assert_close(sums, wanted, rtol=0, atol=0)
