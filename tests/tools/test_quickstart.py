"""The quickstart from end to end, as the shell command runs it, with small settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    'model.backbone.arch.width=32', 'model.backbone.arch.depth=2', 'model.objectives.feature.head.width=32',
    'train_dataloader.dataset.indices=192', 'custom_hooks.0.lengths=[2,2]', 'train_cfg.max_epochs=4',
    'param_scheduler.0.end=1', 'param_scheduler.1.begin=1', 'param_scheduler.1.end=2',
]  # fmt: skip
SMALL_FINETUNE = [
    'model.backbone.arch.width=32', 'model.backbone.arch.depth=2', 'model.head.in_channels=32',
    'train_cfg.max_iters=30', 'train_cfg.val_interval=30', 'param_scheduler.0.end=5',
    'param_scheduler.1.begin=5', 'param_scheduler.1.end=30',
]  # fmt: skip


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
    """Work dir and printed text of one run."""
    folder = tmp_path_factory.mktemp('quickstart')
    command = [sys.executable, ROOT / 'tools/quickstart.py', '--work-dir', folder / 'run', '--data-root', folder / 'digits']
    options = ['--labels', '2', '--draws', '2', '--cfg-options', *SMALL, '--ft-options', *SMALL_FINETUNE]
    done = subprocess.run([*map(str, command), *options], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / 'run', done.stdout


def test_quickstart__report_has_every_row(quickstart):
    folder, printed = quickstart
    rows = json.loads((folder / 'report.json').read_text())['rows']
    assert [(row['start'], row['labels_per_class']) for row in rows] == [
        ('scratch', 2), ('teacher0', 2), ('stage1', 2), ('stage2', 2),
    ]  # fmt: skip
    for row in rows:
        first, second = row['accuracies']
        assert row['mean'] == pytest.approx((first + second) / 2)
        assert row['std'] == pytest.approx(abs(first - second) / 2**0.5)
        assert all(0 <= accuracy * 357 / 100 <= 357 for accuracy in row['accuracies'])
        assert first * 357 / 100 == pytest.approx(round(first * 357 / 100), abs=1e-3)  # counted on all 357 scans
    assert 'stage2' in printed


def test_quickstart__pictures_show_something(quickstart):
    folder, _ = quickstart
    for name in ('attention.png', 'curves.png'):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert('RGB').getcolors(2**24)) > 50


def test_quickstart__keeps_the_stages(quickstart):
    folder, _ = quickstart
    assert {path.name for path in (folder / 'pretrain').glob('stage_*.pth')} == {f'stage_{i}.pth' for i in range(3)}
