"""The diffs of docs/mix_in.md, applied to the hosts' own files and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from mkd_plugin import load_student
from mkd_plugin.datasets import draw_labelled, write_digits

ROOT = Path(__file__).resolve().parents[3]


def apply_diff(host: str, target: Path) -> Path:
    """Copy a host's configs, apply its diff, and return the changed config.

    Every hunk's context and removed lines must be found, exactly once, in the file as it is shipped.
    """
    section = re.search(rf'^## {host}:.*?```diff\n(.*?)```', (ROOT / 'docs/mix_in.md').read_text(), re.M | re.S)
    assert section, f'docs/mix_in.md has no diff for {host}'
    header, *hunks = re.split(r'^@@\n', section[1], flags=re.M)
    spec = find_spec(host)
    assert spec is not None and spec.origin is not None
    shutil.copytree(Path(spec.origin).parent / '.mim' / 'configs', target / 'configs', dirs_exist_ok=True)
    changed = target / re.search(r'^\+\+\+ b/(\S+)$', header, re.M)[1]
    text = changed.read_text()
    for hunk in hunks:
        lines = hunk.splitlines()
        assert all(line[0] in ' +-' for line in lines)
        before = '\n'.join(line[1:] for line in lines if line[0] != '+')
        after = '\n'.join(line[1:] for line in lines if line[0] != '-')
        assert text.count(before) == 1, f'this part of the diff does not fit {changed.name}:\n{before}'
        text = text.replace(before, after)
    changed.write_text(text)
    return changed


def test_mmpretrain__trains_two_stages(tmp_path):
    """MAE's config, with dBOT mixed in, through mmpretrain's dataset class, pipeline, optimiser and schedule."""
    config = apply_diff('mmpretrain', tmp_path)
    digits = write_digits(tmp_path / 'digits')
    draw_labelled(digits, 1, 0)
    small = [
        *('model.backbone.arch=ti', 'model.backbone.img_size=32', 'model.objectives.feature.head.depth=1'),
        *('model.objectives.feature.head.width=32', 'model.objectives.feature.head.num_heads=2'),
        *(f'data_root={digits}', 'train_dataloader.dataset.ann_file=meta/01_0.txt', 'train_dataloader.dataset.split='),
        *('train_dataloader.dataset.data_prefix=train', 'train_dataloader.dataset.pipeline.1.scale=32'),
        *('train_dataloader.batch_size=5', 'train_dataloader.num_workers=0'),
        *('train_dataloader.persistent_workers=False', 'train_cfg.max_epochs=4'),
        *('param_scheduler.0.end=1', 'param_scheduler.1.begin=1', 'param_scheduler.1.end=2'),
        *('param_scheduler.1.T_max=1', 'default_hooks.logger.interval=1'),
    ]
    command = [
        sys.executable,
        ROOT / 'tools/train.py',
        config,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *small,
    ]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert (tmp_path / 'work' / 'stage_2.pth').is_file(), done.stderr[-3000:]
    stages = [torch.load(tmp_path / 'work' / f'stage_{i}.pth', weights_only=True)['state_dict'] for i in (0, 1, 2)]
    teacher = {
        name.removeprefix('teachers.boot.network.'): value for name, value in stages[2].items() if 'boot' in name
    }
    for name, value in stages[1].items():
        if name.startswith('backbone.layers.0.attn'):
            assert torch.equal(value, teacher[name.removeprefix('backbone.')])  # student 1 became the teacher of 2
    assert load_student(tmp_path / 'work' / 'stage_2.pth').features(torch.rand(2, 3, 32, 32)).shape == (2, 192)
    losses = [float(loss) for loss in re.findall(r'loss_feature: ([\d.]+)', done.stderr + done.stdout)]
    assert len(losses) == 8 and all(0 < loss < 10 for loss in losses)


TINY = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=128)


def test_mmseg__loads_our_student_and_gets_gradients(tmp_path, build_distiller):
    pytest.importorskip('mmseg.models', reason='mmseg cannot be imported here')
    cfg = Config.fromfile(apply_diff('mmseg', tmp_path))
    assert cfg.model.backbone.arch == 'b' and cfg.model.backbone.img_size == 512
    arch = dict(width=32, depth=4, num_heads=2)
    distiller = build_distiller(backbone=dict(type='VisibleViT', arch=arch, img_size=32, patch_size=16)).float()
    torch.save(dict(state_dict=distiller.state_dict()), tmp_path / 'stage_2.pth')

    model = cfg.model
    model.backbone.update(arch=TINY, img_size=64, out_indices=[0, 1, 2, 3])
    model.backbone.init_cfg.checkpoint = str(tmp_path / 'stage_2.pth')
    model.neck.update(in_channels=[32] * 4, out_channels=32)
    model.decode_head.update(in_channels=[32] * 4, channels=16)
    model.auxiliary_head.update(in_channels=32, channels=16)
    model.data_preprocessor = dict(type='SegDataPreProcessor', size=(64, 64))
    with DefaultScope.overwrite_default_scope('mmseg'):
        network = revert_sync_batchnorm(MODELS.build(model.to_dict()))
        network.init_weights()
    for name, value in distiller.backbone.named_parameters():
        if name != 'pos_embed':  # resized from 2 × 2 to 4 × 4
            torch.testing.assert_close(network.backbone.get_parameter(name), value, rtol=0, atol=0, msg=name)

    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(150, (1, 64, 64))), metainfo=dict(img_shape=(64, 64)))
        for _ in range(2)
    ]
    losses = network.loss(torch.randn(2, 3, 64, 64), samples)
    total = losses['decode.loss_ce'] + losses['aux.loss_ce']
    total.backward()
    assert torch.isfinite(total)
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == ['backbone.cls_token'] or without == []


def test_mmdet__diff_applies_and_parses(tmp_path):
    pytest.importorskip('mmcv')
    if find_spec('mmdet') is None:
        pytest.skip('mmdet is not installed')
    model = Config.fromfile(apply_diff('mmdet', tmp_path)).model
    assert model.backbone.type == 'mmpretrain.VisionTransformer' and model.neck.in_channels == [768]
    assert model.data_preprocessor.pad_size_divisor == model.backbone.patch_size == 16


def test_mmdet__gets_losses_and_gradients(tmp_path):
    if find_spec('mmdet') is None:
        pytest.skip('mmdet is not installed')
    import mmdet.models  # noqa: F401
    from mmdet.testing import demo_mm_inputs

    model = Config.fromfile(apply_diff('mmdet', tmp_path)).model
    model.backbone.update(arch=TINY, img_size=64, out_indices=[3], init_cfg=None)
    model.neck.in_channels = [32]
    with DefaultScope.overwrite_default_scope('mmdet'):
        network = MODELS.build(model.to_dict())
        network.init_weights()
        data = network.data_preprocessor(demo_mm_inputs(2, [[3, 64, 64], [3, 50, 60]], num_classes=80), True)
        losses = network(**data, mode='loss')
    total = sum(loss for name, loss in losses.items() if 'loss' in name)
    total.backward()
    assert torch.isfinite(total)
    assert network.backbone.layers[0].attn.qkv.weight.grad.abs().sum() > 0
