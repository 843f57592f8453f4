"""The effect of command-line options on a config, and the number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mkd_plugin.preflight.config import apply_training_options, load_config
from mkd_plugin.preflight.distributed import processes_from_environment

ROOT = Path(__file__).resolve().parents[3]


def test_load_config__data_root_reaches_every_dataset():
    config = ROOT / 'configs/dbot/finetune/digits/dbot-ft_digits.py'
    cfg = load_config(str(config), options={'data_root': '/my/digits'})
    for part in ('train', 'val', 'test'):
        assert cfg[f'{part}_dataloader'].dataset.data_root == '/my/digits'
    config = ROOT / 'configs/dbot/dbot_vit-base-p16_8xb512-2x800e_folder.py'
    cfg = load_config(str(config), options={'data_root': '/my/images'})
    assert cfg.train_dataloader.dataset.data_root == '/my/images'
    assert cfg.work_dir == 'work_dirs/dbot_vit-base-p16_8xb512-2x800e_folder'


def test_load_config__data_root_reaches_the_annotations_of_evaluators(tmp_path):
    (tmp_path / 'c.py').write_text(
        "data_root = 'data/coco/'\n"
        "val_evaluator = dict(ann_file=data_root + 'annotations/val.json')\n"
        "test_evaluator = [dict(ann_file='elsewhere/test.json'), dict(ann_file=data_root + 'test.json')]\n"
    )
    cfg = load_config(str(tmp_path / 'c.py'), options={'data_root': '/my'})
    assert cfg.val_evaluator.ann_file == '/my/annotations/val.json'
    assert [entry.ann_file for entry in cfg.test_evaluator] == ['elsewhere/test.json', '/my/test.json']


def test_load_config__data_root_of_a_config_without_one(tmp_path):
    (tmp_path / 'c.py').write_text("train_dataloader = dict(dataset=dict(data_root='a', pipeline=[dict(type='X')]))")
    cfg = load_config(str(tmp_path / 'c.py'), options={'data_root': 'b'})
    assert cfg.train_dataloader.to_dict() == {'dataset': {'data_root': 'b', 'pipeline': [{'type': 'X'}]}}


def test_load_config__precision_is_what_the_device_has(monkeypatch):
    config = ROOT / 'configs/dbot/dbot_vit-base-p16_8xb512-2x800e_in1k.py'
    monkeypatch.setattr('mkd_plugin.preflight.config.has_accelerator', lambda: False)
    cfg = load_config(str(config), launcher='pytorch')
    assert cfg.optim_wrapper.type == 'OptimWrapper' and 'dtype' not in cfg.optim_wrapper
    assert cfg.optim_wrapper.clip_grad.max_norm == 3.0
    assert cfg.model_wrapper_cfg.device_ids is None and not cfg.model_wrapper_cfg.find_unused_parameters
    monkeypatch.setattr('mkd_plugin.preflight.config.has_accelerator', lambda: True)
    cfg = load_config(str(config), launcher='pytorch')
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('AmpOptimWrapper', 'bfloat16')
    assert 'model_wrapper_cfg' not in cfg
    assert cfg.optim_wrapper.loss_scale == dict(enabled=False)  # it would search all gradients in every step
    plain = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    apply_training_options(plain, amp=True)
    assert plain.optim_wrapper == dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
    monkeypatch.setattr('mkd_plugin.preflight.config.has_bfloat16', lambda: False)
    cfg = load_config(str(config))
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == ('float16', 'dynamic')


def test_load_config__sync_bn_is_bn_on_a_cpu(monkeypatch, tmp_path):
    """torch's SyncBN raises on a CPU in a process group. In lists and deep inside, and in nothing but the model."""
    (tmp_path / 'c.py').write_text(
        "norm = dict(type='SyncBN', requires_grad=True)\n"
        "neck = [dict(type='mkd_plugin.ScalePyramid', norm_cfg=norm), dict(type='FPN')]\n"
        'model = dict(neck=neck, roi_head=dict(bbox_head=[dict(norm_cfg=norm, conv_cfg=None)]), head=dict(norm_cfg=None))\n'
        "train_dataloader = dict(note=dict(type='SyncBN'))"
    )
    monkeypatch.setattr('mkd_plugin.preflight.config.has_accelerator', lambda: False)
    told = []
    monkeypatch.setattr('mkd_plugin.preflight.config.print_log', lambda text, **_: told.append(text))
    cfg = load_config(str(tmp_path / 'c.py'), launcher='pytorch')
    bn = {'type': 'BN', 'requires_grad': True}
    assert cfg.model.neck[0].norm_cfg == bn and cfg.model.roi_head.bbox_head[0].norm_cfg == bn
    assert cfg.train_dataloader.note.type == 'SyncBN'
    assert told == ['There is no GPU: BN replaces SyncBN; each process has its own statistics.']
    monkeypatch.setattr('mkd_plugin.preflight.config.has_accelerator', lambda: True)
    cfg = load_config(str(tmp_path / 'c.py'), launcher='pytorch')
    assert cfg.model.neck[0].norm_cfg.type == 'SyncBN' and len(told) == 1


def test_load_config__unknown_file():
    with pytest.raises(ValueError, match=r"no config is named 'nothing\.py'"):
        load_config('nothing.py')


def test_train__auto_scale_lr_counts_accumulated_steps():
    """64 images × 64 accumulated steps are the 4096 that the rate is for; mmengine alone would divide it by 64."""
    cfg = load_config('dbot/dbot_vit-base-p16_1xb64-accum64-2x800e_in1k')
    apply_training_options(cfg, auto_scale_lr=True)
    assert cfg.train_dataloader.batch_size / cfg.auto_scale_lr.base_batch_size == 1.0
    with pytest.raises(ValueError, match='has no auto_scale_lr'):
        apply_training_options(Config(dict(optim_wrapper=dict())), auto_scale_lr=True)


def test_processes_from_environment():
    assert processes_from_environment('none', {}) == (0, 1)
    assert processes_from_environment('pytorch', {'RANK': '3', 'WORLD_SIZE': '4'}) == (3, 4)
    assert processes_from_environment('slurm', {'SLURM_PROCID': '1', 'SLURM_NTASKS': '2'}) == (1, 2)
    with pytest.raises(ValueError, match=r'RANK and WORLD_SIZE are not set.*dist_train\.sh'):
        processes_from_environment('pytorch', {})
