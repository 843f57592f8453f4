"""Several teachers: losses of the digits configs written out in float64, and runs that are stopped and resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.rows import tiny
from helpers.tiny_runs import kill_resume
from torch.nn import functional as F

from mkd_plugin.models.standardize import hadamard
from mkd_plugin.utils.draws import draw_uniform, start_step


@pytest.fixture
def batches():
    return torch.randn(3, 4, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_step():
    yield
    start_step(None)


def tokens(model, name, images, tap='output'):
    return model.teachers[name](images, None, (tap,)).tokens(tap)


def test_radio__is_cosine_on_cls_and_mse_after_phi_s(batches):
    """Statistics of the first batch, then of both, and no others."""
    objectives = {name: dict(normalize=dict(type='FixedStandardize', batches=2)) for name in ('mae', 'dbot')}
    model = tiny('multi_teacher/radio_digits', objectives)
    seen = {name: [] for name in objectives}
    for step, images in enumerate(batches):
        found = model.loss(images)
        student = model.backbone(images, taps=('output',)).tokens('output')
        for name, rows in seen.items():
            target = tokens(model, name, images)
            if step < 2:
                rows += target[:, 1:].flatten(0, 1)
            known = torch.stack(rows)
            values, vectors = np.linalg.eigh(np.cov(known.numpy(), rowvar=False))
            largest = np.abs(vectors).argmax(0)
            vectors = vectors * np.sign(vectors[largest, range(len(largest))])
            matrix = values.mean() ** -0.5 * hadamard(24) @ torch.from_numpy(vectors).T
            wanted = (target[:, 1:] - known.mean(0)) @ matrix.T
            predicted = mlp(model.objectives[name].heads[0], student[:, 1:])
            torch.testing.assert_close(found[f'loss_{name}'], F.mse_loss(predicted, wanted), rtol=1e-7, atol=0)
            cls = mlp(model.objectives[f'{name}_cls'].heads[0], student[:, 0])
            cosine = 1 - F.cosine_similarity(cls, target[:, 0]).mean()
            torch.testing.assert_close(found[f'loss_{name}_cls'], cosine, rtol=1e-9, atol=0)


def mlp(head, x):
    x = head.embed(x)
    x = x + head.layers[0](x)
    return head.predict(x)


def test_unic__keeps_the_teacher_of_the_largest_loss(batches):
    """ℓ = mean over cls and patches of ½ cosine + ½ smooth L1 of standardised targets; Σ kept ℓ / Σ kept."""
    model = tiny('multi_teacher/unic_digits', {name: dict(student=['block:0', 'block:1']) for name in NAMES})
    statistics = {}
    for step, images in enumerate(batches[:2]):
        start_step(step)
        found = model.loss(images)
        drawn = draw_uniform('teacher dropping', [2, 4], 1, torch.device('cpu'))
        student = model.backbone(images, taps=('block:0', 'block:1'))
        each = {}
        for name in NAMES:
            rows = slice(0, 1) if name.endswith('cls') else slice(1, None)
            raw = tokens(model, name.removesuffix('_cls'), images)[:, rows]
            mean, std = statistics.get(name, (0.0, 1.0 - 1e-6))
            statistics[name] = raw.flatten(0, 1).mean(0), raw.flatten(0, 1).std(0) + 1e-6  # a share of 1 at the start
            layers = model.objectives[name].heads[0].layers
            predicted = sum(layer(student.tokens(f'block:{i}')[:, rows]) for i, layer in enumerate(layers))
            wanted = (raw - mean) / (std + 1e-6)
            near = F.smooth_l1_loss(predicted, wanted, reduction='none').mean(-1)
            each[name] = (0.5 * (1 - F.cosine_similarity(predicted, wanted, dim=-1)) + 0.5 * near).mean(1) / 2
        total = torch.stack([each['mae_cls'] + each['mae'], each['dbot_cls'] + each['dbot']])
        kept = ((total == total.max(0).values) | (drawn >= 0.5)).double()
        for name in NAMES:
            row = kept[int(name.startswith('dbot'))]
            wanted = (row * each[name]).sum() / kept.sum()
            torch.testing.assert_close(found[f'loss_{name}'], wanted, rtol=1e-9, atol=1e-12)
        assert found['mae_kept'] == kept[0].mean()


NAMES = ('mae_cls', 'mae', 'dbot_cls', 'dbot')


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


@pytest.mark.parametrize(
    'normalize, stages, balance',
    [
        (dict(type='FixedStandardize', batches=18), 1, dict(type='RunningBalance')),
        (
            dict(type='RunningStandardize', share=dict(type='CosineRamp', start=1.0, end=0.001)),
            2,
            dict(type='TeacherDropping'),
        ),
    ],
)
def test_resume__continues_statistics_and_balance(normalize, stages, balance, tiny_run, train, tmp_path):
    """Stopped between two updates of the statistics; ends bit for bit like a run that never stopped."""

    def config(name):
        cfg = tiny_run(tmp_path / name)
        cfg.model.objectives.feature.normalize = normalize
        cfg.model.teachers.boot.stages = stages
        cfg.model.balance = balance
        return cfg

    train(config('whole'))
    with pytest.raises(Stop):
        train(config('stopped'), at=(15, stop))
    train(config('stopped'))
    assert kill_resume.differences(tmp_path / 'whole', tmp_path / 'stopped') == []
