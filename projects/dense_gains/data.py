"""Where a config reads the scenes: loaders and metrics of a split."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.config import Config
from PIL import Image

from projects.dense_gains.scenes import CLASSES
from projects.digit_scenes.writing import ADE_NAMES

#: Task → measure → its name in the host's metrics, and the factor that makes it per cent
MEASURES = {
    'detection': {'box': ('coco/bbox_mAP', 100.0), 'mask': ('coco/segm_mAP', 100.0)},
    'segmentation': {'miou': ('mIoU', 1.0)},
}
NAMES = {'box': 'AP-box', 'mask': 'AP-mask', 'miou': 'mIoU'}
AT_ONCE = 10  # scenes of a step of measuring
PALETTE = [((37 * number) % 256, (91 * number) % 256, (173 * number) % 256) for number in range(1 + len(CLASSES))]


def place(cfg: Config, task: str, root: Path) -> None:
    """Let a fine-tuning read the labelled training scenes, and validate on the split 'val'."""
    dataset = cfg.train_dataloader.dataset
    dataset.data_root, dataset.metainfo = str(root), metainfo(task)
    cfg.val_dataloader, cfg.val_evaluator = measuring(cfg, task, root, 'val')
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None


def metainfo(task: str) -> dict[str, Any]:
    """Return names and colours of the classes; to a segmentor the background is the first."""
    if task == 'detection':
        return dict(classes=CLASSES, palette=PALETTE[1:])
    return dict(classes=('background', *CLASSES), palette=PALETTE)


def measuring(
    cfg: Config, task: str, root: Path, split: str, annotations: Path | None = None, count: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configs of loader and metric of a split, or of its first ``count`` scenes with these annotations."""
    loader, metric = copy.deepcopy(cfg.val_dataloader), copy.deepcopy(cfg.val_evaluator)
    loader.batch_size, dataset = AT_ONCE, loader.dataset
    dataset.update(data_root=str(root), metainfo=metainfo(task), indices=count)
    if task == 'detection':
        file = annotations or root / f'coco/annotations/{split}.json'
        dataset.update(ann_file=str(file), data_prefix=dict(img=f'coco/{split}/'))
        metric.ann_file = str(file)
    else:
        folder = ADE_NAMES[split]
        dataset.data_prefix = dict(img_path=f'ade/images/{folder}', seg_map_path=f'ade/annotations/{folder}')
    return loader, metric


def first_annotations(root: Path, split: str, count: int, file: Path) -> Path:
    """Write the annotations of the first scenes of a split: COCO's metric counts every image that its file lists."""
    whole = json.loads((root / f'coco/annotations/{split}.json').read_text())
    images = whole['images'][:count]
    kept = {image['id'] for image in images}
    annotations = [entry for entry in whole['annotations'] if entry['image_id'] in kept]
    file.write_text(json.dumps(dict(whole, images=images, annotations=annotations)))
    return file


def scores_of(task: str, metrics: dict[str, float]) -> dict[str, float]:
    """Return the measures of a task from a host's metrics, per cent; mmdet gives none when no object was found."""
    return {name: round(float(metrics.get(key, 0.0)) * factor, 3) for name, (key, factor) in MEASURES[task].items()}


def read_scenes(root: Path, split: str, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read the first scenes of a split, (N, H, W, 3), and their label maps, (N, H, W)."""
    names = [f'{number:05d}.png' for number in range(count)]
    folders = root / 'ade/images' / ADE_NAMES[split], root / 'ade/annotations' / ADE_NAMES[split]
    images, maps = (np.stack([np.asarray(Image.open(folder / name)) for name in names]) for folder in folders)
    return images, maps
