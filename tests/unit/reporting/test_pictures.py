"""mkd_plugin.reporting.pictures: segmentation is drawn over the image, not over black."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mkd_plugin.reporting.pictures import OPACITY, draw_sample


@pytest.fixture
def drawn():
    """Image, annotation and prediction of a 32 × 32 scene with a class in one corner and an ignored row."""
    pytest.importorskip('mmseg')
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    image = np.random.default_rng(0).integers(60, 200, (32, 32, 3), dtype=np.uint8)
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :8, :8] = 1
    labels[:, 31] = 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), pred_sem_seg=PixelData(data=torch.zeros_like(labels)))
    visualizer = SegLocalVisualizer(name='test_pictures')
    visualizer.dataset_meta = dict(classes=('background', 'one'), palette=[[0, 0, 0], [250, 0, 0]])
    return draw_sample(visualizer, image, sample)


def test_draw_sample__background_and_ignored_pixels_show_the_image(drawn):
    image, truth, predicted = drawn
    assert image.shape == truth.shape == (384, 384, 3)  # enlarged by 12
    assert (truth[200:, 200:] == image[200:, 200:]).all()  # background, and the ignored row
    assert (predicted == image).all()  # all background
    wanted = image[80:95, 2:90] * (1 - OPACITY) + np.array([250, 0, 0]) * OPACITY
    assert np.abs(truth[80:95, 2:90] - wanted).max() < 2  # the class, below its label
