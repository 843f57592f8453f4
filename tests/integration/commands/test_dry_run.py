"""`mkd train --dry-run`: every part of the report, and its messages when something is missing."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from rich.console import Console
from torch import nn

from mkd_plugin import get_ablation, get_config
from mkd_plugin.engine.optim import parameter_groups
from mkd_plugin.preflight.checks import missing_files, without_checkpoints
from mkd_plugin.preflight.dry_run import dry_run
from mkd_plugin.preflight.plan import Batch, Stage, batch_of, memory_of, plan_warnings, stages_of

ROOT = Path(__file__).resolve().parents[3]


def tiny(name: str, root: Path, **options) -> Config:
    """A shipped config with a small network and data in an empty folder."""
    cfg = get_config(name)
    arch = dict(width=32, depth=2, num_heads=2)
    cfg.model.backbone.arch = arch
    for objective in cfg.model.get('objectives', {}).values():
        objective.head.update(depth=1, width=16, num_heads=2)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(loader):
            cfg[loader].dataset.data_root = str(root)
    cfg.optim_wrapper.type = 'OptimWrapper'
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key, None)
    cfg.merge_from_dict(options)
    cfg.launcher = 'none'
    return cfg


def report(cfg: Config, **options) -> tuple[int, str]:
    text = io.StringIO()
    code = dry_run(cfg, console=Console(file=text, width=120), **options)
    return code, text.getvalue()


@pytest.fixture
def images(tmp_path) -> Path:
    for number in range(20):
        Image.new('RGB', (40, 30), (number, 0, 0)).save(tmp_path / f'{number}.png')
    return tmp_path


def test_dry_run__says_what_would_run(images):
    cfg = tiny('dbot/dbot_vit-base-p16_8xb512-2x800e_folder', images)
    code, text = report(cfg, processes=8, images=2)
    assert code == 0 and text.rstrip().endswith('ready') and 'problem' not in text
    assert 'files: all there' in text and 'data: 20 images, 0.0 steps an epoch' in text
    assert text.count('800 epochs') == 2 and text.count('0.0024') >= 4
    assert '512 images × 1 accumulated × 8 processes = 4096' in text and 'note' not in text
    assert 'for (2, 3, 224, 224) on' in text and 'loss_feature' in text
    assert 'memory, estimated' in text and 'memory, measured with 2 of 512 images' in text


def test_dry_run__a_missing_file_does_not_stop_the_rest(tmp_path):
    cfg = tiny('dbot/dbot_vit-base-p16_teacher-vit-large_8xb512-1x800e_in1k', tmp_path / 'nowhere')
    cfg.model.teachers.boot.arch = dict(width=32, depth=2, num_heads=2)
    code, text = report(cfg, images=2)
    assert code == 1 and text.rstrip().endswith('not ready')
    assert f'missing: {tmp_path}/nowhere – a folder of images' in text
    assert 'train_dataloader.dataset.data_root=…' in text
    assert 'work_dirs/dbot_vit-large-p16_8xb512-2x800e_in1k/stage_2.pth – a checkpoint' in text
    assert 'model.teachers.boot.checkpoint=…' in text
    assert 'parameter groups' in text and 'for (2, 3, 224, 224) on' in text  # random weights stood in for the teacher
    assert text.count('problem') == 2


def test_dry_run__every_part_is_tried(images):
    """A run too short for its stages, and a model that cannot be built, are two problems of one report."""
    options = {'train_cfg.max_epochs': 1, 'model.masking.ratio': 1.5}
    code, text = report(tiny('dbot/dbot_vit-base-p16_8xb512-2x800e_folder', images, **options))
    assert code == 1
    assert 'problem schedule: ValueError' in text and 'problem model: ValueError: ratio=1.5' in text
    assert 'effective batch' in text


def test_dry_run__an_empty_folder_is_a_problem(tmp_path):
    code, text = report(tiny('dbot/dbot_vit-base-p16_8xb512-2x800e_folder', tmp_path), images=1)
    assert (
        code == 1 and 'problem data: ValueError' in text and 'has no images' in text and 'for (1, 3, 224, 224)' in text
    )


def test_dry_run__note_if_the_rate_is_for_another_batch(images):
    cfg = tiny('dbot/dbot_vit-base-p16_8xb512-2x800e_folder', images)
    assert 'the rate is for 4096: use 8 processes, accumulate 8 steps' in report(cfg, images=2)[1]


def test_train__dry_run_from_the_command_line(tmp_path):
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/dbot/dbot_digits.py', '--dry-run', '3']
    command += ['--cfg-options', f'data_root={tmp_path}/none', 'model.backbone.arch.depth=1']
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert f'missing: {tmp_path}/none' in done.stdout and 'for (3, 3, 24, 24) on' in done.stdout
    assert not list(tmp_path.iterdir())  # nothing is written


def test_missing_files__of_lists_prefixes_splits_and_wrapped_datasets(tmp_path):
    (tmp_path / 'images').mkdir()
    inner = dict(type='CustomDataset', data_root=str(tmp_path), data_prefix='images', ann_file='list.txt')
    wrapped = dict(type='RepeatDataset', dataset=inner)
    split = dict(type='ImageNet', data_root=str(tmp_path), split='train')
    coco = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img='val2017/'))
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=wrapped),
            val_dataloader=dict(dataset=split),
            test_dataloader=dict(dataset=coco),
            model=dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=''))),
            load_from='https://somewhere.org/x.pth',
        )
    )
    found = {(entry.path.removeprefix(f'{tmp_path}/'), entry.option) for entry in missing_files(cfg)}
    assert found == {
        ('list.txt', 'train_dataloader.dataset.dataset.ann_file'),
        ('train', 'val_dataloader.dataset.data_prefix'),
        ('a.json', 'test_dataloader.dataset.ann_file'),
        ('val2017/', 'test_dataloader.dataset.data_prefix'),
        ("''", 'model.backbone.init_cfg.checkpoint'),
    }


def test_without_checkpoints__missing_only_keeps_what_is_there(tmp_path):
    there = tmp_path / 'there.pth'
    there.touch()
    model = dict(
        backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='/nowhere.pth')),
        teachers=[dict(checkpoint=str(there)), dict(checkpoint='/nowhere.pth', arch='b')],
    )
    assert without_checkpoints(model, missing_only=True) == dict(
        backbone=dict(init_cfg=None), teachers=[dict(checkpoint=str(there)), dict(checkpoint=None, seed=0, arch='b')]
    )


@pytest.mark.parametrize(
    'row, lengths', [('default', [800, 800]), ('stages-533x3', [533] * 3), ('stages-400-800', [400, 800])]
)
def test_stages_of__every_stage_reaches_the_configured_peak(row, lengths):
    stages = stages_of(get_ablation('dbot', row), 2.4e-3)
    assert [stage.length for stage in stages] == lengths
    assert [stage.peak for stage in stages] == pytest.approx([2.4e-3] * len(lengths))
    assert [stage.peak_at for stage in stages] == [40] * len(lengths)
    assert all(stage.final < 1e-7 for stage in stages)


def test_stages_of__iterations_and_no_schedule():
    cfg = Config(dict(train_cfg=dict(by_epoch=False, max_iters=400)))
    (stage,) = stages_of(cfg, 0.1)
    assert (stage.length, stage.unit, stage.peak, stage.final) == (400, 'iterations', 0.1, 0.1)
    cfg.param_scheduler = dict(type='MultiStepLR', milestones=[100, 300], gamma=0.1, by_epoch=False)
    assert stages_of(cfg, 0.1)[0].final == pytest.approx(1e-3)


def test_batch_of__scaled_rate_counts_accumulation():
    cfg = get_config('dbot/dbot_vit-base-p16_1xb64-accum64-2x800e_in1k')
    assert batch_of(cfg, 2).effective == 64 * 64 * 2 and batch_of(cfg, 2).ratio == 1.0
    cfg.auto_scale_lr = dict(base_batch_size=4096 / 64, enable=True)  # as tools/train.py --auto-scale-lr leaves it
    assert batch_of(cfg, 1).ratio == 1.0 and batch_of(cfg, 2).ratio == 2.0


def test_memory_of__and_groups():
    model = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2))
    model[2].requires_grad_(False)
    groups = [dict(params=[model[0].weight], weight_decay=0.1), dict(params=[model[0].bias], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert parameter_groups(optimizer) == [('', 1, 50, 1e-3, 0.1), ('', 1, 5, 1e-3, 0.0)]
    memory = memory_of(model, optimizer)
    assert (memory.weights, memory.gradients, memory.optimizer) == (220, 220, 440)
    assert memory.teachers == 12 * 4 + 2 * 5 * 4 + 8  # the frozen layer and the running statistics
    assert sum(memory) == 220 * 4 + memory.teachers
    assert memory_of(model, torch.optim.SGD(model[0].parameters(), lr=1.0)).optimizer == 0
    assert memory_of(model, torch.optim.SGD(model[0].parameters(), lr=1.0, momentum=0.9)).optimizer == 220


def test_dry_run__warns_of_a_hopeless_plan(images):
    """Twenty images, four processes of sixteen, two epochs, and a decoder larger than the student."""
    options = {'model.objectives.feature.head.width': 64, 'model.objectives.feature.head.depth': 3}
    cfg = tiny('dbot/dbot_vit-base-p16_8xb512-2x800e_folder', images, **options)
    cfg.merge_from_dict({'train_dataloader.batch_size': 16, 'train_cfg.max_epochs': 2})
    code, text = report(cfg, processes=4, images=2)
    said = ' '.join(text.split())
    assert code == 0
    assert 'warning an update takes 64 images, but there are only 20: use a smaller batch' in said
    assert 'warning stage 2 has 0 updates; with fewer than 500 little is learned' in said
    assert re.search(r'warning the heads have [0-9,]+ parameters, the student [0-9,]+: use a smaller decoder', said)


def test_plan_warnings__of_a_plan_with_hope_there_are_none():
    stages = [Stage(800, 'epochs', 1e-3, 40, 0.0)] * 2
    batch = Batch(images=512, accumulation=1, processes=8, base=4096, scaled=False)
    assert plan_warnings(stages, batch, 1_281_167, None) == []
    few = [Stage(499, 'iterations', 1e-3, 40, 0.0), Stage(1_000, 'iterations', 1e-3, 40, 0.0)]
    assert [text[:7] for text in plan_warnings(few, batch, None, None)] == ['stage 1']
    accumulated = Batch(images=512, accumulation=4, processes=2, base=4096, scaled=False)
    assert [text[:25] for text in plan_warnings(few[1:], accumulated, None, None)] == ['stage 1 has 250 updates; ']
