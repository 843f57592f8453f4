"""Training on a GPU: the host never waits, compiled code is right, runs resume exactly, and files open anywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gpu_benchmark_checks as checks
import pytest
import torch
from gpu_benchmark_contestants import Ours
from gpu_benchmark_runs import FOLDER, config_on, photographs
from gpu_benchmark_steps import Setting, Setup
from helpers.house import ROOT
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch._dynamo.utils import counters
from workload import read_config

from mkd_plugin import load_student

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]
CUDA = torch.device('cuda')


@pytest.fixture
def setup(tmp_path) -> Setup:
    return Setup(CUDA, tiny=True, batch_size=4, folder=tmp_path, official=None, end=math.inf)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_no_waiting__raises_where_a_value_is_read():
    value = torch.ones(1, device=CUDA)
    with pytest.raises(RuntimeError, match='synchroniz'), no_waiting():
        value.item()


@pytest.mark.parametrize('config', checks.METHODS.values(), ids=checks.METHODS)
def test_step__of_every_method_never_waits(config):
    contestant = Ours(read_config(config), 8, CUDA, crops=False)
    for _ in range(2):  # optimizers and kernels prepare themselves
        contestant.step()
    with no_waiting():
        for _ in range(3):
            contestant.step()


@pytest.mark.parametrize('compiled', [None, 'blocks'])
def test_step__with_crops_in_mixed_precision_never_waits(setup, compiled):
    torch._dynamo.reset()
    counters.clear()
    contestant = Setting(compiled=compiled).build(setup)
    for _ in range(3):
        contestant.step()
    assert (counters['stats']['unique_graphs'] > 0) == (compiled is not None)
    with no_waiting():
        losses = [contestant.step() for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)


class NoWaiting(Hook):
    """Forbids waiting from the beginning of one iteration to that of another."""

    priority = 'HIGHEST'

    def __init__(self, first: int, end: int) -> None:
        self.modes = {first: 'error', end: 'default'}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.modes:
            torch.cuda.set_sync_debug_mode(self.modes[runner.iter])


def test_run__never_waits_between_two_lines_of_the_log(setup):
    """Runner, hooks, optimiser wrapper and loader of the shipped config."""
    cfg = config_on(setup, FOLDER, photographs(setup, 8 * setup.batch_size), workers=1)
    cfg.work_dir, cfg.train_cfg.max_epochs = str(setup.folder / 'run'), 2
    runner = Runner.from_cfg(cfg)
    runner.register_hook(NoWaiting(3, 7))  # the line is written at the end of the epoch of 8
    try:
        runner.train()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert runner.iter == 16


@pytest.mark.parametrize('config', checks.METHODS.values(), ids=checks.METHODS)
def test_compiled__blocks_have_the_gradients_of_float64(config):
    torch._dynamo.reset()
    counters.clear()
    errors = checks.method_errors(read_config(config), CUDA, torch.float32, compiled=True)
    assert all(error <= bound for error, bound in zip(errors, checks.BOUNDS[torch.float32], strict=True)), errors
    assert counters['stats']['unique_graphs'] >= 2  # of student and teacher


def test_promotion__copies_on_the_device_and_compiles_little(setup):
    torch._dynamo.reset()
    counters.clear()
    contestant = Setting(compiled='blocks').build(setup)
    model = contestant.model
    for _ in range(2):
        contestant.step()
    before, images = counters['stats']['unique_graphs'], torch.randn(2, 3, 224, 224, device=CUDA)
    assert before >= 3  # of student, decoder and teacher
    model.promote_teachers()
    teacher = model.teachers['boot']
    with torch.no_grad():
        wanted = model.backbone.eval()(images).tokens('output')
        torch.testing.assert_close(teacher(images, None, ('output',)).tokens('output'), wanted)
    assert all(value.is_cuda for value in teacher.state_dict().values())
    model.reset_student()
    model.train()
    for _ in range(2):
        assert math.isfinite(contestant.step())
    assert 2 <= counters['stats']['unique_graphs'] - before <= 3 + 2  # two for the comparison above


def test_resume__is_exact_with_deterministic_kernels(tmp_path):
    """Deterministic products need a variable of the environment before the first one: a process of its own."""
    out = tmp_path / 'out.jsonl'
    command = [sys.executable, str(ROOT / 'benchmarks/gpu_benchmark.py'), '--sections', 'resume', '--out', str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    rows = {line['row']: line for line in map(json.loads, out.read_text().splitlines()) if 'row' in line}
    row = rows['deterministic kernels']
    assert (row['values_unequal_again'], row['values_unequal_resumed']) == (0, 0), (row, done.stdout)
    shipped = rows['kernels as shipped']
    assert shipped['resumed_differs_by'] <= 10 * max(shipped['again_differs_by'], 1e-6)


def test_checkpoint__of_a_gpu_opens_without_one(tiny_run, train, tmp_path):
    runner = train(tiny_run(tmp_path / 'run'))
    assert next(runner.model.parameters()).is_cuda
    path = next((tmp_path / 'run').glob('epoch_*.pth'))
    student = load_student(path)
    images = torch.rand(2, 3, 24, 24)
    torch.save([images, student.backbone(images).tokens('output')], tmp_path / 'wanted.pt')
    code = (
        'import sys, torch; from mkd_plugin import load_student; assert not torch.cuda.is_available();'
        'images, wanted = torch.load(sys.argv[2]); found = load_student(sys.argv[1]).backbone(images).tokens("output");'
        'torch.testing.assert_close(found, wanted)'
    )
    hidden = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, '-c', code, str(path), str(tmp_path / 'wanted.pt')]
    done = subprocess.run(command, env=hidden, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
