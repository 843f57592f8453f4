"""COCO's and ADE20K's configs, made small: what a network of four blocks and an image of 4 × 4 patches need."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mkd_plugin.models.vit.block import resolve_arch
from mkd_plugin.utils.configs import config_root, get_config

TINY = dict(width=32, depth=4, num_heads=4)
DENSE = ('cascade', 'mask-rcnn', 'upernet')  # what the configs of mmdet's and mmseg's models are called
SIDE = 64  # of an image, pixels
PROPOSALS = ('nms_pre', 'max_per_img')


def names() -> list[str]:
    """Every shipped config of a detector or segmentor, below `config_root()`."""
    found = (path.relative_to(config_root()).with_suffix('') for path in config_root().rglob('*.py'))
    return sorted(path.as_posix() for path in found if any(kind in path.name for kind in DENSE))


def read(name: str) -> Config:
    """A config of one's own; files are read once."""
    return copy.deepcopy(parsed(name))


@cache
def parsed(name: str) -> Config:
    """A config that nobody may change. mmengine reads a host's hundred metafiles for every base; here it does so once."""
    with patch('mmengine.config.utils.load', metafile):
        return get_config(name)


metafile = cache(load)


def shrink(cfg: Config) -> Config:
    """The same network with four blocks of width 32, 16 or 32 channels elsewhere, and few boxes.

    Channels are replaced by value, so that a config whose channels do not fit its backbone's width still fails.
    """
    model = cfg.model
    backbone = model.backbone
    width = resolve_arch(backbone.arch).width
    taps = len(backbone.out_indices)
    backbone.update(arch=TINY, img_size=SIDE, out_indices=list(range(4 - taps, 4)), drop_path_rate=0.0, init_cfg=None)
    if 'window_size' in backbone:
        backbone.update(window_size=2, global_blocks=(1, 3))
    for key in set(model) - {'backbone'}:
        make_narrow(model[key], {width: TINY['width'], 256: 16, 1024: 32})
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = (SIDE, SIDE)
        model.test_cfg.update(crop_size=(SIDE, SIDE), stride=(42, 42))
    return cfg


def make_narrow(node: Any, sizes: dict[int, int]) -> None:
    """Replace every number of channels, let there be 32 proposals, and anchors that fit into the image."""
    if isinstance(node, (list, tuple)):
        for entry in node:
            make_narrow(entry, sizes)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key.endswith('channels') and isinstance(value, list):
            node[key] = [sizes.get(entry, entry) for entry in value]
        elif key.endswith('channels'):
            node[key] = sizes.get(value, value)
        elif key in PROPOSALS:
            node[key] = 32
        elif key == 'anchor_generator':
            value.scales = [1]  # 8 would leave no anchor of the coarse maps inside of the image
        else:
            make_narrow(value, sizes)


def build(cfg: Config) -> nn.Module:
    """The model, with its host's parts found."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.init_weights()
    return model


def batch_of(cfg: Config, height: int = SIDE, width: int = SIDE) -> dict[str, list[Any]]:
    """Two random images with boxes and masks, or with a label map, as the host's loader gives them."""
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        heads = cfg.model.roi_head.bbox_head
        classes = (heads[0] if isinstance(heads, list) else heads).num_classes
        shapes = [(3, height, width), (3, height, width * 3 // 4)]
        return demo_mm_inputs(2, shapes, num_items=[2, 3], num_classes=classes, with_mask=True)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    numbers = np.random.default_rng(0)
    samples = []
    for _ in range(2):
        labels = torch.from_numpy(numbers.integers(0, cfg.model.decode_head.num_classes, (1, height, width)))
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width)))
        samples.append(sample)
    images = torch.from_numpy(numbers.integers(0, 256, (2, 3, height, width), dtype=np.uint8))
    return dict(inputs=list(images), data_samples=samples)
