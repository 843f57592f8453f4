"""The numbers of the recipes on COCO and ADE20K, copied by hand from shared/methods.md, and what the augmentation gives."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_dense import build, parsed, read, shrink
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

B, L = (3, 5, 7, 11), (7, 11, 15, 23)  # dBOT's reference code: after blocks 4/6/8/12 of B
COLUMNS = ('lr', 'layer_decay', 'drop_path', 'taps', 'position', 'relative', 'layer_scale')
A, R = ('learned', None, None), ('learned', 'per_block', 1.0)  # absolute; a relative bias and layer scale on top
# fmt: off
COCO = {
    'dbot/finetune/coco/dbot-cascade_vit-base-p16_1x_coco': (1e-4, 0.75, 0.2, B, *A),
    'dbot/finetune/coco/dbot-cascade_vit-large-p16_1x_coco': (1e-4, 0.75, 0.2, L, *A),
    'dbot/finetune/coco/dbot-cascade_vit-base-p16_rpe_1x_coco': (1e-4, 0.75, 0.2, B, 'learned', 'per_block', None),
    'dbot/finetune/coco/dbot-cascade_vit-large-p16_rpe_1x_coco': (1e-4, 0.75, 0.2, L, 'learned', 'per_block', None),
    'dbot/finetune/coco/dbot-cascade_vit-base-p16_teacher-clip-base_1x_coco': (1e-4, 0.75, 0.2, B, 'learned', None, 0.1),
    'dbot/finetune/coco/dbot-cascade_vit-large-p16_teacher-clip-large_1x_coco':
        (1e-4, 0.75, 0.2, L, 'learned', None, 0.1),
    'dbot/finetune/coco/dbot-mask-rcnn_vit-base-p16_1x_coco': (3e-4, 0.75, 0.2, B, *A),
    'dmae/finetune/coco/dmae-cascade_vit-base-p16_1x_coco': (1e-4, 0.75, 0.2, B, *A),
    'hybrid_distill/finetune/coco/hybrid-mask-rcnn_vit-base-p16_1x_coco': (3e-4, 0.75, 0.2, B, *A),
    'hybrid_distill/finetune/coco/hybrid-mask-rcnn_vit-large-p16_1x_coco': (2e-4, 0.75, 0.2, L, *A),
    'hybrid_distill/finetune/coco/hybrid-cascade_vit-base-p16_1x_coco': (3e-4, 0.75, 0.2, B, *A),
    'hybrid_distill/finetune/coco/hybrid-cascade_vit-large-p16_1x_coco': (3e-4, 0.75, 0.2, L, *A),
    'maskdistill/finetune/coco/maskdistill-cascade_vit-base-p16_1x_coco': (1e-4, 0.75, 0.2, B, 'none', 'per_block', 0.1),
    'maskdistill/finetune/coco/maskdistill-mask-rcnn_vit-large-p16_1x_coco':
        (2e-4, 0.75, 0.2, L, 'none', 'per_block', 1e-5),
    'downstream/mmdet/vit-base-p16_vitdet-mask-rcnn_1x_coco': (3e-4, 0.75, 0.2, (11,), *A),
}
ADE20K = {
    'dbot/finetune/ade20k/dbot-upernet_vit-base-p16_160k_ade20k-512': (1e-4, 0.65, 0.2, B, *R),
    'dbot/finetune/ade20k/dbot-upernet_vit-large-p16_160k_ade20k-512': (3e-5, 0.95, 0.2, L, *R),
    'dbot/finetune/ade20k/dbot-upernet_vit-base-p16_teacher-clip-base_160k_ade20k-512':
        (3e-5, 0.85, 0.1, B, 'none', 'per_block', 0.1),
    'dbot/finetune/ade20k/dbot-upernet_vit-large-p16_teacher-clip-large_160k_ade20k-512':
        (9e-6, 0.9, 0.1, L, 'none', 'per_block', 0.1),
    'maskdistill/finetune/ade20k/maskdistill-upernet_vit-base-p16_160k_ade20k-512':
        (1e-4, 0.75, 0.1, B, 'none', 'per_block', 0.1),
    'maskdistill/finetune/ade20k/maskdistill-upernet_vit-large-p16_160k_ade20k-512':
        (1e-4, 0.85, 0.2, L, 'none', 'per_block', 1e-5),
    'hybrid_distill/finetune/ade20k/hybrid-upernet_vit-base-p16_160k_ade20k-512': (4e-4, 0.65, 0.2, B, *R),
    'hybrid_distill/finetune/ade20k/hybrid-upernet_vit-large-p16_160k_ade20k-512': (4e-4, 0.75, 0.2, L, *R),
    'dmae/finetune/ade20k/dmae-upernet_vit-base-p16_160k_ade20k-512': (1e-4, 0.65, 0.2, B, *R),
}
# fmt: on


@pytest.mark.parametrize('name', [*COCO, *ADE20K])
def test_dense_recipe__has_the_papers_numbers(name):
    cfg = parsed(name)
    backbone, optimizer = cfg.model.backbone, cfg.optim_wrapper.optimizer
    found = dict(
        lr=optimizer.lr,
        layer_decay=cfg.optim_wrapper.paramwise_cfg.layer_decay_rate,
        drop_path=backbone.drop_path_rate,
        taps=tuple(backbone.out_indices),
        position=backbone.get('position', 'learned'),
        relative=backbone.get('relative_position'),
        layer_scale=backbone.get('layer_scale'),
    )
    assert found == dict(zip(COLUMNS, {**COCO, **ADE20K}[name], strict=True))
    assert (optimizer.type, optimizer.weight_decay, tuple(optimizer.betas)) == ('AdamW', 0.05, (0.9, 0.999))
    assert cfg.optim_wrapper.get('clip_grad') is None
    assert 8 * cfg.train_dataloader.batch_size == 16 == cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize('name', COCO)
def test_coco_recipe__schedule_and_windows(name):
    cfg = parsed(name)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end, warm_up.by_epoch) == ('LinearLR', 1e-3, 500, False)
    assert (steps.type, steps.milestones, steps.gamma) == ('MultiStepLR', [8, 11], 0.1)
    assert cfg.train_cfg.max_epochs == 12 and cfg.val_evaluator.metric == ['bbox', 'segm']
    windows = (14, (2, 5, 8, 11)) if 'vitdet' in name else (None, None)
    assert (cfg.model.backbone.get('window_size'), cfg.model.backbone.get('global_blocks')) == windows


@pytest.mark.parametrize('name', [name for name in COCO if 'cascade' in name])
def test_cascade_recipe__three_heads_of_four_convolutions(name):
    model = parsed(name).model
    assert model.type == 'CascadeRCNN' and model.neck[1].num_outs == 5 and model.neck[1].out_channels == 256
    heads = model.roi_head.bbox_head
    for head in heads:
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
        assert head.norm_cfg.type == 'SyncBN' and not head.reg_class_agnostic and head.reg_decoded_bbox
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
    assert [head.bbox_coder.target_stds[0] for head in heads] == [0.1, 0.05, 0.033]  # the host's own, stage by stage


@pytest.mark.parametrize('name', ADE20K)
def test_ade20k_recipe__schedule_head_and_windows(name):
    cfg = parsed(name)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 1e-6, 1500)
    assert (decay.type, decay.power, decay.eta_min, decay.begin, decay.end) == ('PolyLR', 1.0, 0.0, 1500, 160000)
    assert cfg.train_cfg.max_iters == 160000
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    resize, crop = steps['RandomResize'], steps['RandomCrop']
    assert (resize.scale, resize.ratio_range, crop.crop_size) == ((2048, 512), (0.5, 2.0), (512, 512))
    assert (crop.cat_max_ratio, steps['RandomFlip'].prob) == (0.75, 0.5) and 'PhotoMetricDistortion' in steps
    model, width = cfg.model, {'b': 768, 'l': 1024}[cfg.model.backbone.arch]
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert (head.type, head.channels, head.pool_scales, head.dropout_ratio) == ('UPerHead', width, (1, 2, 3, 6), 0.1)
    assert (auxiliary.in_index, auxiliary.channels, auxiliary.loss_decode.loss_weight) == (2, 256, 0.4)
    assert head.num_classes == auxiliary.num_classes == 150 and head.norm_cfg.type == 'SyncBN'
    assert model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert model.data_preprocessor.size == cfg.data_preprocessor.size == (512, 512)


@pytest.mark.parametrize('size, drop_path', [('base', 0.1), ('large', 0.2)])
def test_ade20k_recipe__as_the_paper_prints_it(size, drop_path):
    cfg = parsed(f'dbot/finetune/ade20k/dbot-upernet-paper_vit-{size}-p16_16k_ade20k-512')
    assert cfg.model.backbone.drop_path_rate == drop_path and cfg.train_cfg.max_iters == 16000
    decay = cfg.param_scheduler[1]
    assert (decay.type, decay.begin, decay.end, decay.by_epoch) == ('CosineAnnealingLR', 1500, 16000, False)


@pytest.mark.parametrize('name, decay', [(next(iter(COCO)), 0.75), (next(iter(ADE20K)), 0.65)])
def test_dense_recipe__rates_by_layer(name, decay):
    """The rule with the four blocks of the tiny network: decay^(4 + 1 − i), 1 for neck and heads."""
    cfg = shrink(read(name))
    model = build(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {id(parameter): (group['lr'], group['weight_decay']) for group in groups for parameter in group['params']}
    for key, parameter in model.named_parameters():
        layer = 5 if not key.startswith('backbone.') else int(key.split('.')[2]) + 1 if '.layers.' in key[:16] else 0
        undecayed = parameter.ndim == 1 or key.endswith(('pos_embed', 'cls_token', 'bias_table'))
        assert rates[id(parameter)] == (pytest.approx(1e-4 * decay ** (5 - layer)), 0.0 if undecayed else 0.05), key


def write_coco(folder) -> None:
    """One photograph's worth of COCO: 640 × 427 pixels, four boxes with polygons."""
    from mmdet.datasets import CocoDataset

    (folder / 'train2017').mkdir(parents=True)
    (folder / 'annotations').mkdir()
    Image.fromarray(np.full((427, 640, 3), 127, np.uint8)).save(folder / 'train2017' / '1.jpg')
    found: dict[str, list[dict[str, Any]]] = dict(
        images=[dict(id=1, file_name='1.jpg', width=640, height=427)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'])],
        annotations=[],
    )
    for index, (x, y) in enumerate([(20, 20), (400, 30), (30, 300), (420, 280)]):
        corners = [x, y, x + 160, y, x + 160, y + 100, x, y + 100]
        found['annotations'].append(
            dict(id=index, image_id=1, category_id=index, bbox=[x, y, 160, 100], segmentation=[corners], area=16000)
            | dict(iscrowd=0)
        )
    (folder / 'annotations' / 'instances_train2017.json').write_text(json.dumps(found))


def test_coco_augmentation__short_sides_crops_and_flips(tmp_path):
    """Every picture has one of the eleven short sides; about half of them are crops, and half of those that are not flipped."""
    write_coco(tmp_path)
    dataset = read('downstream/mmdet/vit-base-p16_cascade-mask-rcnn_1x_coco').train_dataloader.dataset
    dataset.data_root = str(tmp_path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = DATASETS.build(dataset)
        np.random.seed(0)
        drawn = [built[0] for _ in range(24)]
    shorts = set(range(480, 801, 32))
    whole = cropped = 0
    for item in drawn:
        height, width = item['inputs'].shape[1:]
        assert min(height, width) in shorts or max(height, width) == 1333
        assert min(height, width) <= 800 and max(height, width) <= 1333
        masks = item['data_samples'].gt_instances.masks
        assert (masks.height, masks.width) == (height, width)
        is_whole = len(masks) == 4 and abs(width / height - 640 / 427) < 0.01
        whole, cropped = whole + is_whole, cropped + (not is_whole)
    assert whole >= 4 and cropped >= 4
    assert {item['data_samples'].flip for item in drawn} == {True, False}
    assert len({tuple(item['inputs'].shape) for item in drawn}) > 8
    assert all(torch.isfinite(item['data_samples'].gt_instances.bboxes.tensor).all() for item in drawn)
