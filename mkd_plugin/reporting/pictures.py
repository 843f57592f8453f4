"""Predictions of detectors and segmentors, drawn by the hosts' visualizers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import mmcv
import numpy as np
import numpy.typing as npt
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from torch import Tensor

from mkd_plugin.evaluation.classifier import load_trained
from mkd_plugin.evaluation.images import spread

SIDE = 384  # pixels: small images are enlarged to about this, so that class names fit in
BACKGROUND = 'background'  # name of a class that is not coloured
IGNORED = 255  # label of pixels without a class
OPACITY = 0.6  # of the colours of classes over the image

Picture = npt.NDArray[np.uint8]


def draw_predictions(cfg: Config, checkpoint: str, count: int) -> Iterator[tuple[Picture, Picture, Picture]]:
    """Yield image, annotation and prediction, (H, W, 3) RGB each, of images spread evenly over the validation set.

    The config is that of a detector of mmdet or of a segmentor of mmseg. Boxes with a score below the visualizer's threshold
    (mmdet: 0.3) are left out. Raises ValueError if the checkpoint does not fit the network.
    """
    model = revert_sync_batchnorm(load_trained(cfg, checkpoint)).to(get_device())
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
        options = dict(copy.deepcopy(cfg.visualizer), name=f'draw {checkpoint}', vis_backends=[])
        visualizer = VISUALIZERS.build(options)
        visualizer.dataset_meta = dataset.metainfo
        for index in spread(len(dataset), count):
            with torch.no_grad():
                (sample,) = model.test_step(pseudo_collate([dataset[index]]))
            yield draw_sample(visualizer, mmcv.imread(sample.img_path, channel_order='rgb'), sample.cpu())


def draw_sample(visualizer: Any, image_HW3: Picture, sample: Any) -> tuple[Picture, Picture, Picture]:
    """The enlarged image, and its annotation and prediction drawn on copies."""
    factor = max(1, SIDE // max(image_HW3.shape[:2]))
    image = np.ascontiguousarray(image_HW3.repeat(factor, axis=0).repeat(factor, axis=1))
    sample = enlarge_sample(sample, factor)
    segmented = 'pred_sem_seg' in sample
    if segmented:
        visualizer.alpha = OPACITY
        named = [index for index, label in enumerate(visualizer.dataset_meta['classes']) if label.lower() == BACKGROUND]
        for name in ('gt_sem_seg', 'pred_sem_seg'):
            labels_1HW = sample.get(name).data
            labels_1HW[torch.isin(labels_1HW, torch.tensor(named, dtype=torch.long))] = IGNORED
    drawn = []
    for truth in (True, False):
        visualizer.add_datasample('', image.copy(), sample, draw_gt=truth, draw_pred=not truth, show=False)
        picture = np.asarray(visualizer.get_image())
        if segmented:
            labels_HW = sample.get('gt_sem_seg' if truth else 'pred_sem_seg').data[0].numpy()
            # show the image at ignored pixels, which mmseg darkens, but for labels of classes that reach there
            darkened_HW = (np.abs(picture - image * (1 - OPACITY)) < 2).all(axis=-1)
            picture = np.where(((labels_HW == IGNORED) & darkened_HW)[..., None], image, picture)
        drawn.append(picture)
    return image, drawn[0], drawn[1]


def enlarge_sample(sample: Any, factor: int) -> Any:
    """Scale boxes, masks and label maps of a data sample to the enlarged image."""

    def enlarge(maps_NHW: Tensor) -> Tensor:
        return maps_NHW.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)

    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            setattr(sample, name, type(sample.get(name))(data=enlarge(sample.get(name).data)))
    for name in ('gt_instances', 'pred_instances'):
        if name in sample:
            instances = sample.get(name)
            instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * factor
            if 'masks' in instances:
                masks = instances.masks
                instances.masks = enlarge(masks if isinstance(masks, Tensor) else masks.to_tensor(torch.bool, 'cpu'))
    return sample
