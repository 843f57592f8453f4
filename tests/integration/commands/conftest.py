"""A folder for benchmarks whose trainings are stubs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.stub_trainings import TRAINER

from mkd_plugin.reporting.benchmark import run as benchmark_run
from mkd_plugin.reporting.benchmark import suites
from mkd_plugin.reporting.benchmark.jobs import Trainings
from mkd_plugin.reporting.page import write_page


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """An empty folder, two checkpoints, three configs, and a trainer that does as it is told."""
    monkeypatch.chdir(tmp_path)
    Path('trainer.py').write_text(TRAINER)
    Path('orders.json').write_text('{}')
    for name in ('a', 'b'):
        Path(f'{name}.pth').write_text(f'weights {name}')
    for name in suites.TASKS:
        Path(f'{name}.py').write_text(
            f"model = dict(type='{name}', backbone=dict())\ntrain_cfg = dict(max_iters=4)\nrate = 1\n"
        )
    tasks = {name: suites.Task(name, tmp_path / f'{name}.py') for name in suites.TASKS}
    monkeypatch.setitem(suites.SUITES, 'digit-scenes', lambda recipe, arch: suites.Suite(tasks, seeds=2))
    monkeypatch.setattr(benchmark_run, 'write_page', lambda path, document: None)
    monkeypatch.setattr(
        Trainings, 'command',
        lambda self, job: [
            sys.executable, '-I', '-S', 'trainer.py', str(self.work_dir(job)), str(job), job.task, job.start, str(job.seed),
        ],
    )  # fmt: skip
    return tmp_path


@pytest.fixture
def with_page(stubbed, monkeypatch):
    """The same with the page, which takes a second to draw."""
    monkeypatch.setattr(benchmark_run, 'write_page', write_page)
