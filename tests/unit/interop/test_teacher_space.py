"""`mkd features --as TEACHER`: the student's predictions in the teacher's space, against the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.labelled_files import write_images
from helpers.rows import TINY
from mmengine.config import Config
from torch.nn import functional as F

import mkd_plugin
from mkd_cli import features
from mkd_plugin.engine.provenance import describe
from mkd_plugin.evaluation import Preprocessing, open_images
from mkd_plugin.models.protocols import Progress
from mkd_plugin.registry import MODELS


@pytest.fixture
def run(tmp_path, capsys):
    """Trains the tiny version of a digits config for some steps, saves it, and returns what `mkd features --as` gives."""
    folder = write_images(tmp_path, 'images', count=2, side=24)

    def train(name='multi_teacher/radio_digits', *, steps=2, **changes):
        cfg = mkd_plugin.get_config(name)
        cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
        for network in (cfg.model.backbone, *cfg.model.teachers.values()):
            network.arch = TINY
        config, path = tmp_path / 'run.py', tmp_path / 'run.pth'
        cfg.dump(config)
        torch.manual_seed(0)
        model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})
        model.begin_training(Progress(0, 10))
        for _ in range(steps):
            model.loss(torch.randn(2, 3, 24, 24))
        torch.save(dict(state_dict=model.state_dict(), meta=dict(mkd_plugin=describe(model))), path)
        images = open_images(folder, Preprocessing((24, 24), 27))
        pixels = torch.stack([images[i] for i in range(len(images))]).float()
        return model.eval(), (pixels - 77.9) / 92.8, [str(path), str(folder), '--config', str(config)]

    def compute(arguments, *more):
        out = tmp_path / 'features.npz'
        code = features.main([*arguments, '--out', str(out), *more])
        return np.load(out) if code == 0 else capsys.readouterr().err

    return train, compute


def adaptor(head, x):
    x = head.embed(x)
    return head.predict(x + head.layers[0](x))


def test_as__is_the_head_and_the_inverse_of_phi_s(run):
    train, compute = run
    model, images, arguments = train()
    found = compute(arguments, '--as', 'mae')
    assert {name for name in found.files if name.startswith('as')} == {'as:mae_cls', 'as:mae_mean'}
    with torch.no_grad():
        student = model.backbone(images).tokens('output')
        normalize = model.objectives['mae'].normalizations[0]
        cls = adaptor(model.objectives['mae_cls'].heads[0], student[:, 0])
        patches = adaptor(model.objectives['mae'].heads[0], student[:, 1:]).double()
        # W = s · R with a rotation R, so that the inverse is Rᵀ / s = Wᵀ / s²
        scale = (normalize.transform @ normalize.transform.T).diagonal().mean()
        patches = patches @ normalize.transform / scale + normalize.mean
    np.testing.assert_allclose(found['as:mae_cls'], cls, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found['as:mae_mean'], patches.mean(1), rtol=1e-4, atol=1e-4)
    tokens = compute(arguments, '--as', 'mae', '--pool', 'none')['as:mae_none']
    np.testing.assert_allclose(tokens, torch.cat([cls[:, None], patches], 1), rtol=1e-4, atol=1e-4)


def test_as__is_the_ladder_and_the_inverse_of_running_averages(run):
    train, compute = run
    blocks = ['block:0', 'block:1']
    changes = {f'objectives.{name}.student': blocks for name in ('mae', 'mae_cls', 'dbot', 'dbot_cls')}
    model, images, arguments = train('multi_teacher/unic_digits', **changes)
    objective = model.objectives['dbot']
    with torch.no_grad():
        student, normalize = model.backbone(images, taps=blocks), objective.normalizations[0]
        mlps = zip(blocks, objective.heads[0].layers, strict=True)
        wanted = sum(mlp[2](F.gelu(mlp[0](student.tokens(tap)[:, 1:]))) for tap, mlp in mlps)
        wanted = wanted * (normalize.std + 1e-6) + normalize.mean
    found = compute(arguments, '--as', 'dbot', '--pool', 'mean')['as:dbot_mean']
    np.testing.assert_allclose(found, wanted.mean(1), rtol=1e-4, atol=1e-4)


def test_as__cls_and_patches_of_one_objective_without_normalisation(run):
    train, compute = run
    changes = {'objectives.mae.normalize': None, 'objectives.mae.region': 'all+cls'}
    model, images, arguments = train(**changes)
    with torch.no_grad():
        wanted = adaptor(model.objectives['mae'].heads[0], model.backbone(images).tokens('output'))
    found = compute(arguments, '--as', 'mae', '--pool', 'mean')['as:mae_mean']
    np.testing.assert_allclose(found, wanted[:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    message = "--as mae: to predict cls of intact images, the objectives ['mae', 'mae_cls'] do; name one of them."
    assert message in compute(arguments, '--as', 'mae')


@pytest.mark.parametrize(
    'changes, more, message',
    [
        (dict(steps=0), (), 'FixedStandardize has no statistics yet: they are estimated in training'),
        (
            {'objectives.mae.normalize': dict(_delete_=True, type='TokenStandardize')},
            (),
            '--as mae: TokenStandardize cannot be undone. Train with FixedStandardize',
        ),
        (
            {'objectives.mae_cls.teacher': 'dbot'},
            ('--pool', 'cls'),
            'to predict cls of intact images, no objective does',
        ),
        ({'objectives.mae_cls.tap': 'qkv:0'}, (), "the teacher's cls has 72 channels, its patches 24. Give --pool cls"),
        (
            {'objectives.mae': dict(tap='logit:0', student='logit:0', head=None, normalize=None)},
            (),
            '--as mae: the objective compares relations, or several taps',
        ),
    ],
)
def test_as__refuses_in_one_sentence(run, changes, more, message):
    train, compute = run
    _, _, arguments = train(**changes)
    found = compute(arguments, '--as', 'mae', *more)
    assert message in found and len(found.splitlines()) <= 2


def test_as__refuses_another_config(run):
    train, compute = run
    _, _, arguments = train()
    other = ['--config', 'multi_teacher/radio_digits']
    found = compute([*arguments[:2], *other], '--as', 'mae')
    assert 'is of another config: backbone has no' in found


def test_as__needs_no_file_of_a_cached_teacher(run, tmp_path):
    train, compute = run
    _, _, arguments = train()
    config = tmp_path / 'run.py'
    cfg = Config.fromfile(config)
    inner = {**cfg.model.teachers.mae, 'checkpoint': 'gone.pth'}
    inner.pop('seed', None)
    cfg.model.teachers.mae = dict(type='CachedTeacher', teacher=inner, folder=str(tmp_path / 'cache'), max_gigabytes=1)
    cfg.dump(config)
    assert 'as:mae_cls' in compute(arguments, '--as', 'mae').files
