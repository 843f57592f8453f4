"""Models of the hosts' own configs, with random weights: which of mmcv's compiled ops a training step on a GPU calls."""

from __future__ import annotations

import importlib
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from torch import nn

from mkd_plugin.preflight.checks import without_checkpoints

SIDE = 64  # of an image, pixels
QUERIES = 50


def model_config(name: str) -> tuple[str, ConfigDict]:
    """Host and model of ``mmdet::FOLDER/NAME.py``, without checkpoints and without augmentations that enlarge images."""
    host, _, path = name.partition('::')
    folder = Path(importlib.import_module(f'{host}.models').__path__[0]).parent / '.mim' / 'configs'
    cfg = Config.fromfile(folder / path)
    model = without_checkpoints(cfg.model.to_dict())
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model['data_preprocessor'].pop('batch_augments', None)
    if model.get('num_queries', 0) > QUERIES:
        model['num_queries'] = QUERIES  # a small image has few positions to choose them from
    if host == 'mmseg':
        model['data_preprocessor']['size'] = (SIDE, SIDE)
    return host, ConfigDict(model)


def build(name: str) -> nn.Module:
    """The model for a CPU, with the weights of its initialisation."""
    host, model = model_config(name)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(host):
        built = MODELS.build(model)
        built.init_weights()
    return revert_sync_batchnorm(built).train()


def batch_of(model: nn.Module, host: str) -> Any:
    """Two images of noise with two objects, or a label map of noise."""
    if host == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        masks = any(getattr(model, part, None) is not None for part in ('roi_head', 'mask_head', 'panoptic_head'))
        packed = demo_mm_inputs(2, [(3, SIDE, SIDE)] * 2, num_items=[2, 2], with_mask=masks)
    else:
        from mmseg.structures import SegDataSample

        images = [torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(2)]
        samples = [SegDataSample(metainfo=dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE))) for _ in range(2)]
        for sample in samples:
            sample.gt_sem_seg = PixelData(data=torch.randint(3, (1, SIDE, SIDE)))
        packed = dict(inputs=images, data_samples=samples)
    return model.data_preprocessor(packed, True)


def ops_of_a_step(name: str) -> tuple[set[str], nn.Module]:
    """Take a step's loss and gradients, as if the tensors were on a GPU; return the called ops and the model."""
    from mmcv import _ext
    from mmcv.ops import multi_scale_deform_attn

    model = build(name)
    host = name.partition('::')[0]
    batch, called = batch_of(model, host), set()

    def spied(op: str, function: Any) -> Any:
        return lambda *args, **options: called.add(op) or function(*args, **options)

    with ExitStack() as stack, DefaultScope.overwrite_default_scope(host):
        for op, function in list(vars(_ext).items()):
            if callable(function) and re.search(r'nms|softnms|bbox_overlaps|_forward$', op):
                stack.enter_context(patch.object(_ext, op, spied(op.removesuffix('_forward'), function)))
        stack.enter_context(patch('torch.cuda.is_available', lambda: True))
        stack.enter_context(patch.object(torch.Tensor, 'is_cuda', property(lambda self: True)))
        stack.enter_context(patch.object(multi_scale_deform_attn, 'IS_CUDA_AVAILABLE', True))
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    return called, model
