"""The patches of docs/mix_in, applied with git to the hosts' own configs and trained by the hosts' own scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.house import ROOT

from mkd_plugin import load_student
from mkd_plugin.__main__ import main
from mkd_plugin.datasets import draw_labelled, write_digits
from projects.digit_scenes.writing import write_digit_scenes

COCO = ('person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light')
LOADER = {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}
TWO_STEPS = {
    **LOADER,
    'train_dataloader.dataset.indices': 4,
    'train_cfg.max_epochs': 1,
    'train_cfg.val_begin': 2,
    'default_hooks.logger.interval': 1,
}
NARROW = {
    **TWO_STEPS,
    'param_scheduler.0.start_factor': 1.0,
    'train_dataloader.dataset.pipeline.2.scale': '(96,96)',
    'model.backbone.arch': 'ti',
    'model.neck.0.in_channels': 192,
    'model.neck.0.norm_cfg.type': 'BN',  # SyncBN does not run on a CPU
    'model.neck.1.in_channels': '[192,192,192,192]',
    'model.train_cfg.rpn_proposal.max_per_img': 20,
}
HEAD = 'model.roi_head.bbox_head'
# patch → the config that it changes, and what makes two steps of it small
RUNS = {
    'mmdet_cascade_mask_rcnn': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
        {**NARROW, **{f'{HEAD}.{i}.fc_out_channels': 32 for i in range(3)}},
    ),
    'mmdet_mask_rcnn': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', {**NARROW, f'{HEAD}.fc_out_channels': 32}),
    'mmdet_detr': (
        'detr/detr_r50_8xb2-150e_coco',
        {
            **TWO_STEPS,
            'train_dataloader.dataset.pipeline.3.prob': '[1.0,0.0]',  # the second way crops images of a photograph's size
            'train_dataloader.dataset.pipeline.3.transforms.0.0.scales': '[(96,128),(80,128)]',
            'model.backbone.arch': 'deit-t',
            'model.neck.in_channels': '[192]',
            'model.encoder.num_layers': 1,
            'model.decoder.num_layers': 1,
        },
    ),
    'mmseg_upernet': (
        'vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512',
        {
            **LOADER,
            'train_cfg.max_iters': 2,
            'train_cfg.val_interval': 5,
            'default_hooks.checkpoint.interval': 2,
            'default_hooks.logger.interval': 1,
            'param_scheduler.0.start_factor': 1.0,
            'train_dataloader.dataset.pipeline.2.scale': '(128,128)',
            'train_dataloader.dataset.pipeline.3.crop_size': '(64,64)',
            'model.data_preprocessor.size': '(64,64)',
            'model.backbone.arch': 'deit-t',
            'model.backbone.img_size': 64,
            'model.neck.in_channels': '[192,192,192,192]',
            'model.neck.out_channels': 32,
            'model.decode_head.in_channels': '[32,32,32,32]',
            'model.decode_head.channels': 16,
            'model.decode_head.norm_cfg.type': 'BN',
            'model.auxiliary_head.in_channels': 32,
            'model.auxiliary_head.channels': 16,
            'model.auxiliary_head.norm_cfg.type': 'BN',
        },
    ),
}


def mixed_in(patch: str, folder: Path) -> Path:
    """Copy the host's configs and scripts into a folder, and apply the patch there as a user would."""
    host = patch.partition('_')[0]
    spec = find_spec(host)
    if spec is None or spec.origin is None:
        pytest.skip(f'{host} is not installed')
    shutil.copytree(Path(spec.origin).parent / '.mim', folder)
    subprocess.run(['git', 'apply', ROOT / f'docs/mix_in/{patch}.patch'], cwd=folder, check=True)
    return folder


def training(host: Path, config: str, options: dict[str, object]) -> list[str]:
    """The host's own script and its arguments."""
    options = {**options, 'visualizer.name': config}  # mmengine has one visualizer of a name in a process
    changes = [f'{key}={value}' for key, value in options.items()]
    return [f'{host}/tools/train.py', f'{host}/configs/{config}.py', '--work-dir', 'work', '--cfg-options', *changes]


def losses(work_dir: Path, name: str) -> list[float]:
    """Read a loss of each step from the log of the host's visualiser."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [step[name] for step in map(json.loads, log.read_text().splitlines()) if name in step]


@pytest.fixture(scope='module')
def hosts_data(tmp_path_factory) -> Path:
    """Four scenes of digits where the hosts' configs expect COCO and ADE20K, with labels of theirs."""
    data = tmp_path_factory.mktemp('data')
    scenes = write_digit_scenes(data / 'scenes', train=4, val=1)
    coco = data / 'coco'
    (coco / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        labels = json.loads((scenes / f'coco/annotations/{split}.json').read_text())
        for category, name in zip(labels['categories'], COCO, strict=True):
            category['name'] = name
        (coco / f'annotations/instances_{split}2017.json').write_text(json.dumps(labels))
        (coco / f'{split}2017').symlink_to(scenes / 'coco' / split)
    for path in (scenes / 'ade').glob('*/*/*.png'):
        link = data / 'ade/ADEChallengeData2016' / path.relative_to(scenes / 'ade')
        link.parent.mkdir(parents=True, exist_ok=True)
        link.with_suffix('.jpg' if 'images' in link.parts else '.png').symlink_to(path)  # decoders look at the content
    return data


@pytest.mark.parametrize('patch', RUNS)
def test_dense__two_steps_from_our_student(patch, hosts_data, build_distiller, tmp_path, monkeypatch, one_thread):
    """The student of `stage_2.pth` is loaded where the patch says, and trained for two steps from there.

    `main` is what `python -m mkd_plugin` calls; a process of its own would import the hosts again each time.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    Path('data').symlink_to(hosts_data)
    student = dict(type='VisibleViT', arch='ti', img_size=64, patch_size=16)
    torch.save(dict(state_dict=build_distiller(backbone=student).float().state_dict()), 'stage_2.pth')
    main(training(mixed_in(patch, tmp_path / 'host'), *RUNS[patch]))

    found = losses(Path('work'), 'loss')
    assert len(found) == 2 and all(0 < loss < 1000 for loss in found)
    (saved,) = Path('work').glob('*_[12].pth')
    before = torch.load('stage_2.pth', weights_only=True)['state_dict']
    after = torch.load(saved, weights_only=False)['state_dict']
    blocks = [name for name in before if name.startswith('backbone.layers.')]
    assert len(blocks) == 12 * 12
    for name in blocks:  # another start would be off by the size of a weight
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=2e-3, msg=name)
    assert not any(torch.equal(after[name], before[name]) for name in blocks if name.endswith('weight'))


def test_mmpretrain__trains_two_stages(tmp_path):
    """MAE's config, with dBOT mixed in, through mmpretrain's dataset class, pipeline, optimiser and schedule."""
    draw_labelled(write_digits(tmp_path / 'data/imagenet'), 1, 0)
    small = {
        **LOADER,
        'model.backbone.arch': 'ti',
        'model.backbone.img_size': 32,
        'model.objectives.feature.head.depth': 1,
        'model.objectives.feature.head.width': 32,
        'model.objectives.feature.head.num_heads': 2,
        'train_dataloader.dataset.ann_file': 'meta/01_0.txt',
        'train_dataloader.dataset.split': '',
        'train_dataloader.dataset.data_prefix': 'train',
        'train_dataloader.dataset.pipeline.1.scale': 32,
        'train_dataloader.batch_size': 5,
        'train_cfg.max_epochs': 4,
        'optim_wrapper._delete_': True,  # mmpretrain's mixed precision needs a GPU
        'optim_wrapper.type': 'OptimWrapper',
        'optim_wrapper.optimizer.type': 'AdamW',
        'optim_wrapper.optimizer.lr': 1e-3,
        'param_scheduler.0.end': 1,
        'param_scheduler.1.begin': 1,
        'param_scheduler.1.end': 2,
        'param_scheduler.1.T_max': 1,
        'default_hooks.logger.interval': 1,
    }
    command = training(
        mixed_in('mmpretrain_mae', tmp_path / 'host'), 'mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k', small
    )
    threads = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=threads, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = [torch.load(tmp_path / 'work' / f'stage_{i}.pth', weights_only=True)['state_dict'] for i in (0, 1, 2)]
    teacher = {
        name.removeprefix('teachers.boot.network.'): value for name, value in stages[2].items() if 'boot' in name
    }
    for name, value in stages[1].items():
        if name.startswith('backbone.layers.0.attn'):
            assert torch.equal(value, teacher[name.removeprefix('backbone.')])  # student 1 became the teacher of 2
    assert load_student(tmp_path / 'work' / 'stage_2.pth').features(torch.rand(2, 3, 32, 32)).shape == (2, 192)
    found = losses(tmp_path / 'work', 'loss_feature')
    assert len(found) == 8 and all(0 < loss < 10 for loss in found)
