"""Fine-tuning sweeps: what their configs say, and that frozen blocks do not move in a real run."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.runner import Runner

import mkd_plugin
from mkd_plugin.analysis import finetune, frozen_block_sweep, learning_rate_sweep
from mkd_plugin.datasets import draw_labelled, write_digits
from mkd_plugin.engine import FreezeHook


@pytest.fixture
def cfg():
    return mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The real digits, two labels a class."""
    root = tmp_path_factory.mktemp('digits')
    write_digits(root)
    return root, str(draw_labelled(root, 2, 0).relative_to(root))


def tiny(cfg, digits, work_dir, iterations=3):
    """The same config with a network of three blocks and few steps."""
    root, listed = digits
    cfg.train_dataloader.dataset.update(data_root=str(root), ann_file=listed)
    cfg.val_dataloader.dataset.data_root = str(root)
    cfg.model.backbone.update(arch=dict(width=32, depth=3, num_heads=4), drop_path_rate=0.5)
    cfg.model.head.in_channels = 32
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    cfg.param_scheduler, cfg.log_level, cfg.work_dir = None, 'ERROR', str(work_dir)
    cfg.optim_wrapper.optimizer.weight_decay = 10.0  # would move whatever is not really frozen
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    return cfg


def test_frozen_block_sweep__configs(cfg):
    before = copy.deepcopy(cfg.to_dict())
    runs = frozen_block_sweep(cfg, [0, 2])
    assert cfg.to_dict() == before
    assert runs[0].get('custom_hooks') == cfg.get('custom_hooks')
    assert runs[2].custom_hooks[-1] == dict(type='mkd_plugin.FreezeHook', blocks=2)
    assert runs[2].find_unused_parameters
    assert (runs[0].work_dir, runs[2].work_dir) == ('work_dirs/sweep/frozen_00', 'work_dirs/sweep/frozen_02')
    assert runs[2].optim_wrapper == cfg.optim_wrapper


def test_learning_rate_sweep__configs(cfg):
    cfg.work_dir = 'somewhere'
    runs = learning_rate_sweep(cfg, [1e-3, 3e-5])
    assert [run.optim_wrapper.optimizer.lr for run in runs.values()] == [1e-3, 3e-5] == list(runs)
    assert [run.work_dir for run in runs.values()] == ['somewhere/lr_0.001', 'somewhere/lr_3e-05']
    assert cfg.optim_wrapper.optimizer.lr == 1e-3 and cfg.work_dir == 'somewhere'
    runs[3e-5].optim_wrapper.optimizer.lr = 0.1
    assert runs[1e-3].optim_wrapper.optimizer.lr == 1e-3


def test_sweeps__bad_input(cfg):
    with pytest.raises(ValueError, match=r'blocks=\[-1\]: use numbers from 0'):
        frozen_block_sweep(cfg, [-1])
    with pytest.raises(ValueError, match=r'blocks=\[1, 1\]: give at least one value, without repetition'):
        frozen_block_sweep(cfg, [1, 1])
    with pytest.raises(ValueError, match=r'rates=\[\]: give at least one'):
        learning_rate_sweep(cfg, [])
    with pytest.raises(ValueError, match=r'rates=\[0.1, 0\]: learning rates must be positive'):
        learning_rate_sweep(cfg, [0.1, 0])
    with pytest.raises(ValueError, match='blocks=0: it must be at least 1'):
        FreezeHook(blocks=0)
    cfg.val_evaluator = None
    with pytest.raises(ValueError, match='no val_evaluator'):
        finetune(cfg)


def test_freeze_hook__embeddings_and_first_blocks_stay(cfg, digits, tmp_path):
    """Two of three blocks: none of their numbers moves, all others do, and only those others are in training mode."""
    run = frozen_block_sweep(tiny(cfg, digits, tmp_path), [2])[2]
    runner = Runner.from_cfg(run)
    before = {name: w.detach().clone() for name, w in runner.model.named_parameters()}
    modes = []
    runner.model.backbone.register_forward_hook(
        lambda backbone, inputs, output: modes.append([block.training for block in backbone.layers])
    )
    runner.train()
    stayed = {name for name, w in runner.model.named_parameters() if torch.equal(w, before[name])}
    frozen = (
        'backbone.patch_embed',
        'backbone.cls_token',
        'backbone.pos_embed',
        'backbone.layers.0',
        'backbone.layers.1',
    )
    assert stayed == {name for name in before if name.startswith(frozen)}
    assert modes[:3] == [[False, False, True]] * 3


def test_finetune__accuracy_of_a_real_run(cfg, digits, tmp_path):
    """Per cent of 357 scans; a config that says nothing of freezing moves every weight."""
    accuracy = finetune(tiny(cfg, digits, tmp_path, iterations=2))
    assert 0 <= accuracy <= 100
    assert accuracy * 3.57 == pytest.approx(round(accuracy * 3.57), abs=1e-3)


def test_freeze_hook__more_blocks_than_there_are(cfg, digits, tmp_path):
    run = frozen_block_sweep(tiny(cfg, digits, tmp_path), [4])[4]
    with pytest.raises(ValueError, match='blocks=4: the backbone has 3. Use from 1 to 3'):
        finetune(run)
