"""Full disks, read-only folders, clocks that are set back, and parameters without a gradient."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from mkd_plugin.datasets import write_digits
from mkd_plugin.engine import PreemptionHook
from mkd_plugin.engine.checkpoints import newest_checkpoint
from mkd_plugin.preflight.checks import check_work_dir

ROOT = Path(__file__).resolve().parents[3]
kill_resume = importlib.import_module('kill_resume')
Scenario, build_config, differences = kill_resume.Scenario, kill_resume.build_config, kill_resume.differences


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- Disks


def test_checkpoints__a_disk_that_really_takes_no_more_keeps_the_last_good_one(digits, tmp_path, monkeypatch):
    """No file may grow further than half a checkpoint, once the first is written."""
    cfg = build_config(Scenario('epochs', 0), digits, tmp_path)
    before, put_in_place = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        importlib.import_module('mkd_plugin.engine.checkpoints'),
    )

    def fill(half, whole, original=put_in_place.move_into_place):
        original(half, whole)
        if whole.name == 'epoch_1.pth':
            resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size // 2, before[1]))

    monkeypatch.setattr(put_in_place, 'move_into_place', fill)
    try:
        with pytest.raises(
            OSError, match=r'epoch_2.pth could not be written \(File too large\).*epoch_1.pth. Free space'
        ):
            Runner.from_cfg(cfg).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
    assert not list(tmp_path.glob('*.tmp'))
    monkeypatch.undo()
    Runner.from_cfg(cfg).train()
    Runner.from_cfg(build_config(Scenario('epochs', 0), digits, tmp_path / 'whole')).train()
    assert differences(tmp_path / 'whole', tmp_path) == []


def test_check_work_dir__a_file_in_the_way(tmp_path):
    (tmp_path / 'file').touch()
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(
            ValueError, match=r'work_dir=.*nothing can be written there \(.*/file is a file\).*--work-dir'
        ):
            check_work_dir(folder)


def test_check_work_dir__leaves_nothing_behind(tmp_path):
    check_work_dir(tmp_path / 'new' / 'run')
    check_work_dir('s3://bucket/run')
    assert not list(tmp_path.iterdir())


# root may write everywhere, unless it gives that up
ORDINARY = ['setpriv', '--bounding-set', '-dac_override,-dac_read_search'] if os.getuid() == 0 else []


@pytest.mark.skipif(bool(ORDINARY) and shutil.which('setpriv') is None, reason='root may write everywhere')
@pytest.mark.parametrize('more', [[], ['--dry-run']], ids=['run', 'dry run'])
def test_train__read_only_work_dir_is_refused_before_anything_is_built(tmp_path, more):
    """The data set is not even there."""
    folder = tmp_path / 'locked'
    folder.mkdir(mode=0o555)
    config = ROOT / 'configs/dbot/dbot_digits.py'
    command = [*ORDINARY, sys.executable, ROOT / 'tools/train.py', config, '--work-dir', folder / 'run', *more]
    command += ['--cfg-options', f'data_root={tmp_path}/nothing']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '1000'}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == (1 if more else 2), said[-2000:]
    assert f'{folder}/run: nothing can be written there ({folder}: Permission denied). Name another folder' in said
    assert 'Epoch(train)' not in said and not list(folder.iterdir())


# --- Clocks


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_resume__does_not_ask_the_clock(digits, tmp_path, monkeypatch, loop):
    """Between the two halves the clock goes back by a year, and the files' times are in reverse order."""
    Runner.from_cfg(build_config(Scenario(loop, 0), digits, tmp_path / 'whole')).train()
    cfg = build_config(Scenario(loop, 0), digits, tmp_path / 'set back')
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Told(15))
    with pytest.raises(SystemExit):
        runner.train()
    newest_first = sorted((tmp_path / 'set back').glob('*.pth'), key=lambda path: path.stat().st_mtime, reverse=True)
    for age, path in enumerate(newest_first):
        os.utime(path, (10**9 + age, 10**9 + age))
    now = time.time
    monkeypatch.setattr(time, 'time', lambda: now() - 365 * 24 * 3600)
    Runner.from_cfg(cfg).train()
    left = [path.name for path in (tmp_path / 'set back').glob('*.pth')]
    found = differences(tmp_path / 'whole', tmp_path / 'set back')
    assert found == [f'{name} is left over' for name in left if not (tmp_path / 'whole' / name).exists()]


class Told(PreemptionHook):
    """Is told to stop at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.received = 'SIGTERM' if runner.iter + 1 == self.step else None
        super().after_train_iter(runner, batch_idx, data_batch, outputs)


# --- Parameters that nothing trains


def test_unused_parameters__stop_the_first_step_and_are_named(digits, tmp_path):
    cfg = build_config(Scenario('epochs', 0), digits, tmp_path)
    cfg.model.objectives.feature.student = 'block:0'
    with pytest.raises(ValueError, match=r'These parameters get no gradient from any loss: backbone.layers.1.ln1'):
        Runner.from_cfg(cfg).train()
    assert newest_checkpoint(tmp_path) is None
    cfg.find_unused_parameters, cfg.train_cfg.max_epochs, cfg.model.teachers.boot.stages = True, 1, 1  # it is meant
    Runner.from_cfg(cfg).train()


def test_unused_parameters__only_the_first_backward_pass_is_looked_at(digits, tmp_path):
    runner = Runner.from_cfg(build_config(Scenario('epochs', 0, 4), digits, tmp_path))
    runner.train()
    assert 'backward' not in vars(runner.optim_wrapper)
