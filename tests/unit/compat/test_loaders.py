"""mmengine's loaders of every scheme: what runs code is refused and not run, wherever the file comes from."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers.hostile_files import WEIGHTS, Hostile, hostile_file
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.compat import loaders
from mkd_plugin.compat.loaders import install_safe_loader

kill_resume = importlib.import_module('kill_resume')


@pytest.fixture
def trace(tmp_path) -> Path:
    return tmp_path / 'code was run'


@pytest.fixture(params=['zip', 'legacy'])
def hostile(request, tmp_path, trace) -> Path:
    return hostile_file(tmp_path / 'hostile.pth', trace, zipped=request.param == 'zip')


@pytest.fixture
def mmengines_own_loader(monkeypatch):
    """mmengine as it is without the plugin, whose import has replaced the loader of local files."""
    schemes = dict(CheckpointLoader._schemes)
    schemes[''] = mmengine_checkpoint.load_from_local
    monkeypatch.setattr(CheckpointLoader, '_schemes', schemes)


def test_import__installs_the_safe_loader(hostile, trace):
    with pytest.raises(ValueError, match='was refused'):
        CheckpointLoader.load_checkpoint(str(hostile), map_location='cpu')
    with pytest.raises(ValueError, match='was refused'):
        load_checkpoint(nn.Linear(3, 2), str(hostile))
    assert not trace.exists()


def test_install_safe_loader__replaces_mmengines(mmengines_own_loader, hostile, trace):
    before = CheckpointLoader._get_checkpoint_loader(str(hostile))
    install_safe_loader()
    install_safe_loader()  # twice is as good as once
    assert CheckpointLoader._get_checkpoint_loader(str(hostile)) is not before
    with pytest.raises(ValueError, match='was refused'):
        load_checkpoint(nn.Linear(3, 2), str(hostile))
    assert not trace.exists()


def test_install_safe_loader__loads_what_is_harmless(tmp_path):
    torch.save(dict(state_dict=WEIGHTS, meta=dict(epoch=1)), tmp_path / 'file.pth')
    module = nn.Linear(3, 2)
    load_checkpoint(module, str(tmp_path / 'file.pth'), map_location='cpu', strict=True)
    assert torch.equal(module.weight, WEIGHTS['weight'])
    assert torch.equal(module.bias, WEIGHTS['bias'])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Where a web server offers the files of ``tmp_path``; downloads go to another folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    server = HTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


class Cloud(ModuleType):
    """Stands in for the clients of object stores, which are not to be had here: a folder whose files they give."""

    def __init__(self, folder: Path) -> None:
        super().__init__('pavi')
        self.folder, self.modelcloud = folder, self

    def get(self, name):
        file = self.folder / str(name).rpartition('/')[2]
        if str(name).startswith(('s3://', 'petrel://')):
            return file.read_bytes()
        return SimpleNamespace(name=file.name, download=lambda path: Path(path).write_bytes(file.read_bytes()))


SCHEMES = ['torchvision://named', 'modelzoo://named', 'open-mmlab://named', 'openmmlab://local', 'mmcls://named'] + [
    's3://bucket/{file}',
    'petrel://bucket/{file}',
    'pavi://{file}',
    '{address}/{file}',
    '{folder}/{file}',
]


@pytest.fixture
def places(tmp_path, address, monkeypatch):
    """Every scheme leads to a file of ``tmp_path``: gives the function (scheme, file) → what a config would name."""

    def names(scheme: str, file: str) -> str:
        listed = {'named': f'{address}/{file}'}
        (tmp_path / 'mmengine').mkdir(exist_ok=True)
        (tmp_path / 'mmengine' / 'open_mmlab.json').write_text(json.dumps({**listed, 'local': f'../{file}'}))
        monkeypatch.setattr(mmengine_checkpoint, 'get_torchvision_models', lambda: listed)
        monkeypatch.setattr(mmengine_checkpoint, 'get_mmcls_models', lambda: listed)
        return scheme.format(address=address, folder=tmp_path, file=file)

    monkeypatch.setitem(sys.modules, 'pavi', Cloud(tmp_path))
    monkeypatch.setattr(loaders, 'get_file_backend', lambda name, backend_args: Cloud(tmp_path))
    return names


@pytest.mark.parametrize('scheme', SCHEMES)
def test_load_checkpoint__no_scheme_runs_code(places, hostile, trace, scheme):
    with pytest.raises(ValueError, match='was refused: it holds more than tensors and plain values'):
        CheckpointLoader.load_checkpoint(places(scheme, hostile.name), map_location='cpu')
    assert not trace.exists()


@pytest.mark.parametrize('scheme', SCHEMES)
def test_load_checkpoint__every_scheme_gives_what_was_saved(places, tmp_path, scheme):
    name, prefix = ('weight', 'backbone.') if scheme.startswith('mmcls') else ('weight', '')
    torch.save(dict(state_dict={prefix + name: WEIGHTS[name]}), tmp_path / 'file.pth')
    found = CheckpointLoader.load_checkpoint(places(scheme, 'file.pth'), map_location='cpu')
    assert list(found['state_dict']) == [name] and torch.equal(found['state_dict'][name], WEIGHTS[name])


def test_load_checkpoint__every_scheme_of_mmengine_is_ours():
    """Also one that a later release adds must be."""
    import mmpretrain.models  # noqa: F401  a host that might register some

    assert {loader.__module__ for loader in CheckpointLoader._schemes.values()} == {loaders.__name__}


@pytest.mark.parametrize('scheme', ['torchvision://nmed', 'openmmlab://nmed', 'mmcls://nmed'])
def test_load_checkpoint__unknown_name(places, scheme):
    with pytest.raises(ValueError, match=f"{scheme}: the list of this scheme has no such name. .*'named'"):
        CheckpointLoader.load_checkpoint(places(scheme, 'file.pth'))


def test_load_checkpoint__text_that_mmengine_would_execute_is_dropped(tmp_path, trace):
    """``Runner.resume`` runs ``meta['config']`` as python, however safely the file was read."""
    meta = dict(epoch=1, iter=2, config=f'import os\nos.mkdir({str(trace)!r})', cfg='a = 1')
    torch.save(dict(state_dict=WEIGHTS, meta=meta), tmp_path / 'file.pth')
    found = CheckpointLoader.load_checkpoint(str(tmp_path / 'file.pth'), map_location='cpu')
    assert found['meta'] == dict(epoch=1, iter=2, cfg='a = 1')


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    from mkd_plugin.datasets import write_digits

    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture
def tiny(tmp_path, digits):
    """The config of a run in ``tmp_path / 'run'``."""
    return kill_resume.build_config(kill_resume.Scenario('epochs', 0), digits, tmp_path / 'run')


@pytest.mark.parametrize('way', ['resume', 'load_from', 'init_cfg', 'teacher'])
def test_run__refuses_a_hostile_file(tiny, tmp_path, trace, way):
    path = tmp_path / 'hostile.pth'
    torch.save(dict(state_dict=WEIGHTS, optimizer={}, meta=Hostile(trace)), path)
    tiny.resume, tiny.load_from = way == 'resume', None if way in ('init_cfg', 'teacher') else str(path)
    if way == 'init_cfg':
        tiny.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    if way == 'teacher':
        start = dict(type='ViTTeacher', arch=dict(width=16, depth=2, num_heads=2), patch_size=8, checkpoint=str(path))
        tiny.model.teachers.boot.start = start
    with pytest.raises(ValueError, match='was refused: it holds more than tensors and plain values'):
        Runner.from_cfg(tiny).train()
    assert not trace.exists()


def test_run__resuming_executes_no_text_of_a_checkpoint(tiny, tmp_path, trace):
    tiny.train_cfg.max_epochs, tiny.model.teachers.boot.stages, tiny.param_scheduler = 1, 1, []
    Runner.from_cfg(tiny).train()
    path = tmp_path / 'run' / 'epoch_1.pth'
    checkpoint = read_checkpoint(path)
    checkpoint['meta']['config'] = f'import os\nos.mkdir({str(trace)!r})'
    torch.save(checkpoint, path)
    Runner.from_cfg(tiny).train()
    assert not trace.exists()


def test_resume__picks_no_hostile_file_by_itself(tiny, tmp_path, trace):
    """In the run's own folder, as the furthest of its checkpoints."""
    (tmp_path / 'run').mkdir()
    meta = dict(iter=99, epoch=9, other=Hostile(trace))
    torch.save(dict(state_dict=WEIGHTS, optimizer={}, meta=meta), tmp_path / 'run' / 'epoch_9.pth')
    with pytest.raises(ValueError, match=r"none of the checkpoints of .* can be read: \['epoch_9.pth'\] are damaged"):
        Runner.from_cfg(tiny).train()
    assert not trace.exists()
