"""Every config of a detector and a segmentor, made small: it builds, trains a step, and starts from its pre-training."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from helpers.networks_modern import timm_network
from helpers.tiny_dense import SIDE, TINY, batch_of, build, names, parsed, read, shrink
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image
from test_configs import RUN_HOOKS

from mkd_plugin.models.vit.block import resolve_arch
from mkd_plugin.utils.configs import config_root

NAMES = names()
TEST_ONLY = [name for name in NAMES if name.endswith('-ms')]
TRAINED = [name for name in NAMES if name not in TEST_ONLY]
METHODS = [name for name in TRAINED if '/finetune/coco/' in name or '/finetune/ade20k/' in name]
WITHOUT_STUDENT = [name for name in METHODS if 'dmae' in name and 'large' in name]
STARTED = [name for name in METHODS if name not in WITHOUT_STUDENT]


def test_names__all_four_methods_in_both_sizes():
    kinds = dict(coco=('cascade', 'mask-rcnn'), ade20k=('upernet',))
    for folder, prefix in dict(dbot='dbot', maskdistill='maskdistill', dmae='dmae', hybrid_distill='hybrid').items():
        for data, heads in kinds.items():
            schedule = '1x_coco' if data == 'coco' else '160k_ade20k-512'
            wanted = {f'{prefix}-{head}_vit-{size}-p16_{schedule}' for head in heads for size in ('base', 'large')}
            found = {name.rpartition('/')[2] for name in METHODS if name.startswith(f'{folder}/finetune/{data}/')}
            assert found >= wanted


@pytest.mark.parametrize('name', TRAINED)
def test_dense_config__trains_a_step(name):
    cfg = shrink(read(name))
    model = build(cfg).train()
    data = model.data_preprocessor(batch_of(cfg), training=True)
    total, losses = model.parse_losses(model(**data, mode='loss'))
    assert len([key for key in losses if 'loss' in key]) >= 3 and all(torch.isfinite(losses[key]) for key in losses)
    total.backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
    still = [key for key, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not [key for key in still if not key.endswith('bias')]  # none for a key's bias, nor for one before a norm


@pytest.mark.parametrize('name', NAMES)
def test_dense_config__is_safe_and_recorded(name):
    cfg = parsed(name)
    ours = {hook.type.removeprefix('mkd_plugin.') for hook in cfg.default_hooks.values() if 'mkd_plugin' in hook.type}
    assert ours >= RUN_HOOKS
    host = dict(mmdet='Det', mmseg='Seg')[cfg.default_scope]
    assert cfg.default_hooks.visualization.type == f'{host}VisualizationHook'
    assert cfg.visualizer.type == f'{host}LocalVisualizer'
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']


def pretraining_of(name: str) -> tuple[str, str]:
    """The name of the config whose work dir a config starts from, and the file there."""
    checkpoint = parsed(name).model.backbone.init_cfg.checkpoint
    found = re.fullmatch(r'work_dirs/(.+)/((?:stage|epoch)_\d+)\.pth', checkpoint)
    assert found, checkpoint
    [path] = config_root().glob(f'*/{found[1]}.py')
    return path.relative_to(config_root()).with_suffix('').as_posix(), found[2]


@pytest.mark.parametrize('name', STARTED)
def test_dense_config__starts_where_a_shipped_pretraining_ends(name):
    pretraining, file = pretraining_of(name)
    assert pretraining.split('/')[0] == name.split('/')[0]
    cfg = parsed(pretraining)
    boot = cfg.model.teachers.get('boot', {})
    assert file == (f'stage_{boot.stages}' if 'stages' in boot else f'epoch_{cfg.train_cfg.max_epochs}')
    assert resolve_arch(cfg.model.backbone.arch) == resolve_arch(parsed(name).model.backbone.arch)


@pytest.mark.parametrize('name', WITHOUT_STUDENT)
def test_dense_config__says_that_there_is_no_student(name):
    assert parsed(name).model.backbone.init_cfg.checkpoint == ''
    with pytest.raises((ValueError, FileNotFoundError), match='checkpoint'):
        build_backbone(shrunk_backbone(name), '')


def shrunk_backbone(name):
    """The tiny backbone's config, with what the full one says of its start."""
    backbone = shrink(read(name)).model.backbone
    backbone.init_cfg = parsed(name).model.backbone.init_cfg
    return backbone


def build_backbone(backbone, checkpoint, **changes):
    """The tiny backbone of a config, which reads ``checkpoint`` (None: nothing)."""
    init_cfg = None if checkpoint is None else {**backbone.init_cfg, 'checkpoint': str(checkpoint)}
    with DefaultScope.overwrite_default_scope('mkd_plugin'):
        network = MODELS.build({**backbone, 'arch': TINY, 'init_cfg': init_cfg, **changes})
    network.init_weights()
    return network


@pytest.mark.parametrize('name', STARTED)
def test_dense_config__starts_from_its_pretraining_strictly(name, tmp_path):
    """What is new is what the config says; everything else is the student's, bit by bit or as a table for another grid."""
    student = build_backbone(parsed(pretraining_of(name)[0]).model.backbone, None, img_size=SIDE)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter)
    file = tmp_path / 'student.pth'
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in student.state_dict().items()}}, file)
    network = build_backbone(shrunk_backbone(name), file)
    old, new = student.state_dict(), set()
    for key, value in network.state_dict().items():
        source = old.get(key, old.get(key.partition('attn.')[2]))  # a shared table is in every block
        if source is None:
            new.add(re.sub(r'\d+', '*', key))
        else:
            torch.testing.assert_close(value, source, rtol=0, atol=0)
    relative = 'layers.*.attn.rel_pos_bias.relative_position_bias_table'
    scales = {'layers.*.attn.gamma*.weight', 'layers.*.ffn.gamma*.weight'}
    symmetric = 'maskdistill' in name or 'teacher-clip' in name
    upernet = {relative, *scales} if 'upernet' in name else set()
    assert new == (set() if symmetric else {relative} if '_rpe_' in name else upernet)


def test_dense_config__refuses_another_pretraining(tmp_path):
    """UperNet's recipe for absolute positions and a file without: not a backbone with tables that nobody trained."""
    student = build_backbone(parsed('maskdistill/maskdistill_vit-base-p16_8xb256-300e_in1k').model.backbone, None)
    file = tmp_path / 'student.pth'
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in student.state_dict().items()}}, file)
    with pytest.raises(ValueError, match='pos_embed'):
        build_backbone(shrunk_backbone('dbot/finetune/ade20k/dbot-upernet_vit-base-p16_160k_ade20k-512'), file)


@pytest.mark.parametrize('name', TEST_ONLY)
def test_multi_scale_config__is_the_same_network_and_only_tests(name):
    cfg, trained = parsed(name), parsed(name.removesuffix('-ms'))
    assert cfg.model.type == 'SegTTAModel' and cfg.model.module == trained.model
    assert cfg.train_cfg is cfg.train_dataloader is cfg.optim_wrapper is cfg.val_cfg is None
    assert cfg.test_evaluator == trained.test_evaluator
    sizes, flips = cfg.test_dataloader.dataset.pipeline[1].transforms[:2]
    assert [size.scale for size in sizes] == [
        (1024, 256),
        (1536, 384),
        (2048, 512),
        (2560, 640),
        (3072, 768),
        (3584, 896),
    ]
    assert [flip.prob for flip in flips] == [0, 1]


def test_multi_scale_config__one_label_map_of_twelve_views(tmp_path):
    numbers = np.random.default_rng(0)
    for folder, suffix, shape in (('images', 'jpg', (40, 56, 3)), ('annotations', 'png', (40, 56))):
        (tmp_path / folder / 'validation').mkdir(parents=True)
        Image.fromarray(numbers.integers(0, 150, shape, dtype=np.uint8)).save(
            tmp_path / folder / 'validation' / f'one.{suffix}'
        )
    cfg = read('dbot/finetune/ade20k/dbot-upernet_vit-base-p16_160k_ade20k-512-ms')
    inner = read('dbot/finetune/ade20k/dbot-upernet_vit-base-p16_160k_ade20k-512')
    cfg.model.module = shrink(inner).model
    for size in cfg.test_dataloader.dataset.pipeline[1].transforms[0]:
        size.scale = tuple(side // 8 for side in size.scale)
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    model = build(cfg).eval()
    with DefaultScope.overwrite_default_scope('mmseg'):
        views = DATASETS.build(cfg.test_dataloader.dataset)[0]
    assert len(views['inputs']) == 12
    with torch.no_grad():
        [merged] = model.test_step({key: [[view] for view in value] for key, value in views.items()})
        apart = [model.module.test_step({key: [value[i]] for key, value in views.items()})[0] for i in range(12)]
    assert merged.pred_sem_seg.data.shape == (1, 40, 56)
    mean = torch.stack([view.seg_logits.data.softmax(0) for view in apart]).mean(0)
    assert (merged.pred_sem_seg.data[0] == mean.argmax(0)).float().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAINED)
def test_dense_config__builds_at_full_size(name):
    cfg = read(name)
    cfg.model.backbone.init_cfg = None
    model = build(cfg).eval()
    if 'base' not in name:
        return
    batch = {key: value[:1] for key, value in batch_of(cfg, 256, 352).items()}
    with torch.no_grad():
        [sample] = model.test_step(batch)
    if cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.data.shape == (1, 256, 352) and torch.isfinite(sample.seg_logits.data).all()
    else:
        found = sample.pred_instances
        assert len(found) <= 100 and math.isfinite(found.scores.sum()) and found.masks.shape[0] == len(found.bboxes)


@pytest.mark.parametrize('name', [name for name in TRAINED if name.endswith('_dinov3')])
@torch.no_grad()
def test_dinov3_config__starts_from_its_file_strictly_and_gives_timms_maps(name, tmp_path):
    assert parsed(name).model.backbone.arch == 'b' and parsed(name).model.backbone.patch_size == 16
    theirs = timm_network('dinov3_qkvb', embed_dim=TINY['width'], depth=4, patch_size=16, img_size=SIDE)
    torch.save(theirs.state_dict(), tmp_path / 'dinov3.pth')
    network = build_backbone(shrunk_backbone(name), tmp_path / 'dinov3.pth').eval()
    images = torch.randn(1, 3, SIDE, 3 * SIDE // 2)
    wanted = theirs.forward_intermediates(images, indices=list(network.out_indices), intermediates_only=True)
    for found, map_BDhw in zip(network(images), wanted, strict=True):
        torch.testing.assert_close(found, map_BDhw, rtol=1e-4, atol=1e-5)
