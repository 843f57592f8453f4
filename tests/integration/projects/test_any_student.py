"""projects/any_student: its verdict, the page's table, and a teacher, a student and fine-tunings of two epochs each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mkd_plugin.datasets import write_digits
from mkd_plugin.reporting.experiment import run_jobs
from mkd_plugin.reporting.store import Store
from projects.any_student import run as experiment

PAGE = Path(__file__).resolve().parents[3] / 'docs' / 'any_student.md'


def scores(gains: dict[int, tuple[float, ...]]) -> list[dict]:
    """Scratch scores 50, the student more by the gain of the seed."""
    return [
        dict(seed=seed, start=start, labels=labels, draw=draw, top1=50 + (gain if start == 'student' else 0))
        for labels, values in gains.items()
        for seed, gain in enumerate(values)
        for start in experiment.STARTS
        for draw in experiment.DRAWS
    ]


def test_table__follows_the_rule():
    """With every seed, and by more than their spread: t is 4.303 for two degrees of freedom."""
    text = experiment.table(scores({2: (9.0, 10.0, 11.0), 10: (1.0, 5.0, 9.0)}))
    reach = 4.302653 * 1 / 3**0.5
    assert f'| 2 | 50.0 ± 0.0 | 60.0 ± 1.0 | +10.0 (+{10 - reach:.1f} … +{10 + reach:.1f}) | yes |' in text
    assert text.endswith('| no |')
    assert '| no |' in experiment.table(scores({2: (-1.0, 10.0, 11.0), 10: (9.0, 10.0, 11.0)})).splitlines()[2]


def test_page__has_the_table_of_its_report():
    report = json.loads((PAGE.with_suffix('') / 'report.json').read_text())
    assert len(report['scores']) == 36
    assert experiment.table(report['scores']) in PAGE.read_text()


def test_jobs__teacher_student_and_mmpretrains_own_resnet(tmp_path, monkeypatch, one_thread):
    for name, value in (('SEEDS', (0,)), ('DRAWS', (0,)), ('LABELS', (2,)), ('STARTS', ('student',))):
        monkeypatch.setattr(experiment, name, value)
    read = experiment.mkd_plugin.get_config

    def short(name):
        cfg = read(name)
        if 'finetune' in name:
            cfg.train_cfg.update(max_iters=2, val_interval=2)
            cfg.param_scheduler = None
            cfg.val_dataloader.dataset.indices = 40
        else:
            cfg.train_dataloader.dataset.indices = 48
        return cfg

    monkeypatch.setattr(experiment.mkd_plugin, 'get_config', short)
    store = Store(tmp_path / 'runs')
    jobs = experiment.jobs_of(write_digits(tmp_path / 'digits').resolve(), store, epochs=2)
    outcome = run_jobs(list(jobs.values()), store, console=Console(quiet=True))
    assert not outcome.failures
    assert {name: outcome.records[job.key].value >= 0 for name, job in jobs.items()} == dict.fromkeys(jobs, True)
    learned = torch.load(store.work_dir(jobs['student 0'].key) / 'epoch_2.pth', weights_only=True)
    assert learned['meta']['mkd_plugin']['network'] == 'mmpretrain.ResNet_CIFAR'
    teacher = torch.load(store.work_dir(jobs['teacher 0'].key) / 'stage_2.pth', weights_only=True)
    assert teacher['meta']['mkd_plugin']['stage'] == 2


@pytest.mark.parametrize('epochs, warm_up', [(35, 10), (6, 3)])
def test_pretraining__warm_up_ends_before_the_stage(epochs, warm_up):
    cfg = experiment.pretraining('dbot/dbot_digits', 2, 3, epochs)
    assert cfg.train_cfg.max_epochs == 2 * epochs and cfg.randomness.seed == 3
    assert [cfg.param_scheduler[i].end for i in (0, 1)] == [warm_up, epochs]
