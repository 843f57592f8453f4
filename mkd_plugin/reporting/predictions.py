"""Predictions drawn on validation images by the hosts' own visualizers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.fileio import get
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, DefaultScope
from mmengine.runner import load_checkpoint

SIDE = 384  # pixels that a small image's longer side is enlarged to, in whole steps: class names have to fit in

Picture = npt.NDArray[np.uint8]


def draw_predictions(cfg: Config, checkpoint: str, count: int) -> Iterator[tuple[Picture, Picture]]:
    """What is annotated and what is predicted, on images spread evenly over the validation set.

    Args:
        cfg: A detector's or a segmentor's, of mmdet or mmseg, that the checkpoint is of.
        checkpoint: Of a training.
        count: How many images; all there are if there are fewer.

    Yields:
        Two drawings of (H, W, 3), RGB. Boxes of a score below the visualizer's threshold (mmdet: 0.3) are left out.

    Raises:
        ValueError: The checkpoint is of another network.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
        model = build_trained(cfg, checkpoint)
        options = dict(copy.deepcopy(cfg.visualizer), name=f'draw {checkpoint}', vis_backends=[])
        visualizer = VISUALIZERS.build(options)
        visualizer.dataset_meta = dataset.metainfo
        for index in sorted({round(place) for place in np.linspace(0, len(dataset) - 1, min(count, len(dataset)))}):
            with torch.no_grad():
                (sample,) = model.test_step(pseudo_collate([dataset[index]]))
            yield draw_both(visualizer, read_image(sample.img_path), sample.cpu())


def build_trained(cfg: Config, checkpoint: str) -> Any:
    """The network of a checkpoint, for inference."""
    model_cfg = copy.deepcopy(cfg.model)
    model_cfg.backbone.init_cfg = None  # the checkpoint has every weight
    model_cfg.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    network: Any = MODELS.build(model_cfg)
    model = revert_sync_batchnorm(network).to(get_device()).eval()
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True, logger='silent')
    except RuntimeError as error:
        raise ValueError(f'{checkpoint} is not of this network: {error}') from error
    return model


def read_image(path: str) -> Picture:
    """(H, W, 3), RGB."""
    import mmcv

    return np.asarray(mmcv.imfrombytes(get(path), channel_order='rgb'))


def draw_both(visualizer: Any, image_HW3: Picture, sample: Any) -> tuple[Picture, Picture]:
    """Annotations and predictions, on two copies of an enlarged image."""
    factor = max(1, SIDE // max(image_HW3.shape[:2]))
    image = np.ascontiguousarray(enlarged(image_HW3, factor))
    sample = enlarge_sample(sample, factor)
    drawn = []
    for truth in (True, False):
        visualizer.add_datasample('', image.copy(), sample, draw_gt=truth, draw_pred=not truth, show=False)
        drawn.append(np.asarray(visualizer.get_image()))
    return drawn[0], drawn[1]


def enlarged(pixels: Any, factor: int) -> Any:
    """Pixels as squares of so many: of an image (H, W, 3)."""
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def enlarge_sample(sample: Any, factor: int) -> Any:
    """Boxes, masks and label maps of a data sample for the enlarged image."""
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            map_1HW = sample.get(name).data
            setattr(sample, name, type(sample.get(name))(data=repeated(map_1HW, factor)))
    for name in ('gt_instances', 'pred_instances'):
        if name not in sample:
            continue
        instances = sample.get(name)
        boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
        instances.bboxes = boxes * factor
        if 'masks' in instances:
            masks = instances.masks
            masks_NHW = masks if isinstance(masks, torch.Tensor) else masks.to_tensor(torch.bool, 'cpu')
            instances.masks = repeated(masks_NHW, factor)
    return sample


def repeated(maps_NHW: torch.Tensor, factor: int) -> torch.Tensor:
    """(N, H, W) → (N, factor · H, factor · W)."""
    return maps_NHW.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
