"""Detector and segmentor of the hosts train, are killed, resume to the same bits, are tested and draw, on scenes of digits."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_dense import read
from helpers.tiny_runs import At
from mmengine.config import Config
from mmengine.runner import Runner

from mkd_plugin.preflight.config import move_data_root
from projects.digit_scenes.writing import write_digit_scenes

differences = importlib.import_module('kill_resume').differences
ROOT = Path(__file__).parents[3]
CONFIGS = {
    'mmdet': 'downstream/mmdet/vit-digits_cascade-mask-rcnn_digit-scenes',
    'mmseg': 'downstream/mmseg/vit-digits_upernet_digit-scenes',
}
SCORES = {'mmdet': {'coco/bbox_mAP', 'coco/segm_mAP'}, 'mmseg': {'mIoU', 'mAcc'}}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp('data') / 'scenes', train=7, val=2)


def tiny(host: str, scenes: Path, work_dir: Path, **changes: Any) -> Config:
    """Four narrow blocks, seven scenes in batches of two, and a checkpoint every second iteration."""
    pytest.importorskip(f'{host}.datasets', reason=f'{host} is not installed')
    cfg = read(CONFIGS[host])
    move_data_root(cfg, f'{scenes}/')
    cfg.data_root = f'{scenes}/'
    cfg.model.backbone.update(arch=dict(width=32, depth=4, num_heads=2), out_indices=(0, 1, 2, 3))
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'resume': True,
            'train_dataloader.dataset.indices': 7,
            'train_dataloader.batch_size': 2,
            'default_hooks.checkpoint.interval': 2,
            'default_hooks.visualization': dict(draw=True, interval=1),
            'visualizer.save_dir': str(work_dir / 'drawn'),
            'visualizer.name': str(work_dir),  # mmengine has one visualizer of a name in a process
            **changes,
        }
    )
    for part in (cfg.model.get('neck'), cfg.model.decode_head) if host == 'mmseg' else cfg.model.neck:
        part.in_channels = 32 if isinstance(part.in_channels, int) else [32] * 4
    if host == 'mmseg':
        cfg.model.auxiliary_head.in_channels = 32
    else:
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # there are boxes to be scored after eight steps
    return cfg


def by_epoch(cfg: Config) -> Config:
    """As COCO's recipes are: epochs, and batches of images of like shape."""
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=2)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)]
    cfg.log_processor = dict(by_epoch=True)
    return cfg


def by_iteration(cfg: Config) -> Config:
    """As ADE20K's are: an endless order of samples."""
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=8)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)]
    return cfg


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


def start(cfg: Config, *hooks) -> Runner:
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


LOOPS = [('mmdet', by_epoch), ('mmdet', by_iteration), ('mmseg', by_iteration)]


@pytest.mark.parametrize('host, loop', LOOPS, ids=lambda value: getattr(value, '__name__', value))
def test_run__killed_and_resumed_is_bit_identical_and_is_scored_and_drawn(scenes, tmp_path, one_thread, host, loop):
    """Killed in the middle of an epoch, and in the second one, with seven images in batches of two: four an epoch."""
    whole = start(loop(tiny(host, scenes, tmp_path / 'whole')))
    whole.train()
    for step in (3, 7):
        with pytest.raises(Stop):
            start(loop(tiny(host, scenes, tmp_path / 'killed')), At(step, stop)).train()
    start(loop(tiny(host, scenes, tmp_path / 'killed'))).train()
    assert whole.iter == 8 and differences(tmp_path / 'whole', tmp_path / 'killed') == []

    metrics = whole.test()
    assert set(metrics) >= SCORES[host] and all(0 <= metrics[name] <= 100 for name in SCORES[host])
    assert len(list((tmp_path / 'whole' / 'drawn').rglob('test*.png'))) == 2


@pytest.mark.slow
@pytest.mark.parametrize('host', CONFIGS)
def test_main__runs_the_hosts_own_train_and_test(scenes, tmp_path, host):
    """On the file of print_config.py, which inherits nothing; the scripts are those of the installed package."""
    tools = Path(find_spec(host).origin).parent / '.mim' / 'tools'
    short = by_iteration(tiny(host, scenes, tmp_path / 'work', **{'train_dataloader.dataset.indices': 2}))
    short.train_cfg.update(max_iters=2, val_interval=2)
    short.dump(tmp_path / 'short.py')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}

    def run(*command) -> str:
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    run(ROOT / 'tools/print_config.py', tmp_path / 'short.py', '--out', tmp_path / 'flat' / 'flat.py')
    run('-m', 'mkd_plugin', tools / 'train.py', tmp_path / 'flat' / 'flat.py', '--work-dir', tmp_path / 'theirs')
    saved = tmp_path / 'theirs' / 'iter_2.pth'
    assert saved.is_file()
    shown = run('-m', 'mkd_plugin', tools / 'test.py', tmp_path / 'flat' / 'flat.py', saved)
    assert all(name.removeprefix('coco/') in shown for name in SCORES[host])

    run(ROOT / 'tools/train.py', tmp_path / 'short.py', '--work-dir', tmp_path / 'ours')
    assert differences(tmp_path / 'theirs', tmp_path / 'ours') == []
    run(ROOT / 'tools/test.py', tmp_path / 'short.py', saved, '--work-dir', tmp_path / 'scored')
    report = ROOT / 'tools/train.py', tmp_path / 'short.py', '--dry-run', '2'
    assert run(*report).rstrip().endswith('ready')
