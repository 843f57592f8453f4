"""What is said when a run is resumed on another number of processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.dataset import DefaultSampler
from torch import nn
from torch.utils.data import DataLoader

from mkd_plugin.datasets import ElasticSampler
from mkd_plugin.engine import dependencies
from mkd_plugin.engine.dependencies import BATCH, PROCESSES, compare_configs, why_processes_count
from mkd_plugin.models.targets import BatchStandardize


def runner_of(model, sampler=ElasticSampler, drop_last=False, **options):
    data = range(8)
    loader = DataLoader(data, batch_size=2, sampler=sampler(data, **options), drop_last=drop_last)
    return SimpleNamespace(model=model, cfg={}, train_loop=SimpleNamespace(dataloader=loader), train_dataloader=loader)


@pytest.mark.parametrize(
    'processes, found',
    [
        (1, ([], ['number of processes 2 → 1'])),
        (3, (['images of a step: 2 × 6 → 3 × 6. To keep 12, use train_dataloader.batch_size=4'], [])),
        (5, (['images of a step: 2 × 6 → 5 × 6. To keep 12, use a number of processes that divides 12'], [])),
    ],
)
def test_compare_configs__keeps_the_images_of_a_step(processes, found, monkeypatch, build_distiller):
    size = 12 if processes == 1 else 6
    monkeypatch.setattr(dependencies, 'config_record', lambda cfg: {PROCESSES: f'{processes}', BATCH: f'{size}'})
    monkeypatch.setattr(dependencies, 'images_per_step', lambda runner: processes * size)
    assert compare_configs(runner_of(build_distiller()), {PROCESSES: '2', BATCH: '6'}) == found


def test_why_processes_count__names_what_differs(build_distiller):
    model = build_distiller()
    assert (
        why_processes_count(runner_of(model))
        == why_processes_count(runner_of(model, drop_last=True, round_up=False))
        == ''
    )
    assert why_processes_count(runner_of(nn.Linear(1, 1))) == 'Linear draws for each process'
    assert (
        why_processes_count(runner_of(model, DefaultSampler))
        == 'only ElasticSampler and InfiniteSampler keep the order'
    )
    assert 'opposite of drop_last' in why_processes_count(runner_of(model, drop_last=True))
    model.masking.per_process = True
    assert why_processes_count(runner_of(model)) == f'{type(model.masking).__name__} uses the images of one process'
    model.masking.per_process, model.masking.per_image = False, 2
    assert why_processes_count(runner_of(model)) == f'{type(model.masking).__name__} draws several masks of an image'
    model.masking.per_image = 1
    model.objectives['feature'].extra = BatchStandardize()
    assert why_processes_count(runner_of(model)) == 'BatchStandardize uses the images of one process'
