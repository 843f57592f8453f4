"""Checkpoints hold plain values only, and record their origin."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

import mkd_plugin
from mkd_plugin.checkpoint.download import cached_path
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint
from mkd_plugin.engine import PortableCheckpointHook
from mkd_plugin.engine.provenance import (
    FORMAT,
    changed_teachers,
    describe,
    fingerprint,
    is_plain,
    model_files,
    pack,
    software,
    unpack,
)
from mkd_plugin.interop.inspect import describe_checkpoint, render


def test_software__names_torch_and_every_installed_host():
    found = software()
    assert found['torch'] == torch.__version__ and type(found['torch']) is str
    assert found['timm'] == version('timm')
    for module in ('mmengine', 'mmcv', 'mmpretrain'):
        number, name = found[module].split(' (')
        assert version(name.rstrip(')')) == number


def test_model_files__of_teachers_and_of_the_student(tmp_path):
    file = tmp_path / 'teacher.pth'
    file.write_bytes(b'weights' * 10**6)
    model = dict(
        backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='gone.pth')),
        teachers=dict(mim=dict(checkpoint=str(file)), boot=dict(start=dict(checkpoint='')), clip=dict(checkpoint=None)),
    )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert model_files(dict(model=model)) == {
        'backbone.init_cfg.checkpoint': {'path': 'gone.pth', 'bytes': None, 'sha256': None},
        'teachers.mim.checkpoint': {'path': str(file), 'bytes': 7 * 10**6, 'sha256': digest},
    }
    assert model_files({}) == {}


def test_fingerprint__of_a_folder_is_of_its_files(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    (tmp_path / 'model.safetensors').write_bytes(b'weights')
    before = fingerprint(str(tmp_path))
    assert before['bytes'] == 9 and fingerprint(str(tmp_path)) == before
    (tmp_path / 'model.safetensors').write_bytes(b'changes')
    os.utime(tmp_path / 'model.safetensors', (1, 1))
    assert fingerprint(str(tmp_path))['sha256'] not in (None, before['sha256'])


def test_fingerprint__of_an_address_is_that_of_the_cached_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    address = 'https://somewhere.org/models/x.pth?v=1'
    assert fingerprint(address) == {'path': address, 'bytes': None, 'sha256': None}
    cached_path(address).parent.mkdir(parents=True)
    cached_path(address).write_bytes(b'abc')
    assert fingerprint(address) == {'path': address, 'bytes': 3, 'sha256': hashlib.sha256(b'abc').hexdigest()}


def test_changed_teachers__only_theirs_and_only_if_known():
    old = {name: {'path': 'x', 'sha256': digest} for name, digest in (('teachers.a', '1'), ('teachers.b', None))}
    old['backbone.init_cfg.checkpoint'] = {'path': 'x', 'sha256': '1'}
    new = {name: {'path': 'x', 'sha256': '2'} for name in old}
    assert changed_teachers(old, new) == ['teachers.a: x had sha256 1 and now has 2']
    assert changed_teachers(old, old) == [] and changed_teachers(old, {}) == []


@pytest.fixture
def taught_by_a_file(tmp_path, tiny_run):
    """Config of a run of one stage whose teacher is in a file; the file."""
    file = tmp_path / 'teacher.pth'
    cfg = tiny_run(tmp_path / 'run', **{'train_cfg.max_epochs': 2})
    save_vit(cfg.model.backbone, file, seed=0)
    backbone = cfg.model.backbone
    teacher = dict(type='ViTTeacher', arch=backbone.arch.to_dict(), patch_size=8, checkpoint=str(file))
    cfg.model.teachers = dict(boot=teacher)
    cfg.custom_hooks = []
    return cfg, file


def interrupt(runner, outputs):
    raise KeyboardInterrupt


def save_vit(options, file, *, seed: int) -> None:
    from mkd_plugin.registry import MODELS

    torch.manual_seed(seed)
    torch.save(MODELS.build({**options.to_dict()}).state_dict(), file)


def test_portable_checkpoint__says_what_it_was_made_with(taught_by_a_file, train):
    cfg, file = taught_by_a_file
    train(cfg)
    checkpoint = read_checkpoint(f'{cfg.work_dir}/epoch_2.pth')
    found = provenance_of(checkpoint)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = {'path': str(file), 'bytes': file.stat().st_size, 'sha256': digest}
    assert found['files'] == {'teachers.boot.checkpoint': wanted}
    assert (found['format'], found['version'], found['software']) == (FORMAT, mkd_plugin.__version__, software())
    described = describe_checkpoint(f'{cfg.work_dir}/epoch_2.pth')
    assert described['seed'] == 0 and 'ViTTeacher' in described['config']
    lines = [line.strip() for line in render(described).splitlines()]
    assert f'sha256       {digest}' in lines and f'torch        {torch.__version__}' in lines


def test_resume__refuses_another_teacher_under_the_old_path(taught_by_a_file, train):
    cfg, file = taught_by_a_file
    with pytest.raises(KeyboardInterrupt):
        train(cfg, at=(8, interrupt))
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    save_vit(cfg.model.backbone, file, seed=1)
    changed = f'teachers.boot.checkpoint: {file} had sha256 {before} and now has '
    with pytest.raises(ValueError, match='another teacher') as caught:
        train(cfg)
    assert changed in str(caught.value)


def test_portable_checkpoint__remembers_a_file_that_is_gone(taught_by_a_file, train):
    cfg, file = taught_by_a_file
    started = file.with_name('start.pth')
    save_vit(cfg.model.backbone, started, seed=2)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(started))
    with pytest.raises(KeyboardInterrupt):
        train(cfg, at=(8, interrupt))
    digest = hashlib.sha256(started.read_bytes()).hexdigest()
    started.unlink()
    hook = PortableCheckpointHook()
    before = read_checkpoint(f'{cfg.work_dir}/epoch_1.pth')
    hook.after_load_checkpoint(SimpleNamespace(cfg=cfg, _resume=True, logger=None), before)
    assert hook.files['backbone.init_cfg.checkpoint'] == {
        'path': str(started), 'bytes': hook.files['backbone.init_cfg.checkpoint']['bytes'], 'sha256': digest,
    }  # fmt: skip


def test_pack__round_trip_keeps_history_and_statistics():
    buffer = HistoryBuffer([1.0, 2.0, 4.0], [1, 2, 3], max_length=10)
    packed = pack(buffer)
    assert is_plain(packed)
    restored = unpack(packed)
    assert restored.mean() == buffer.mean() and restored.current() == 4.0 and restored.max_length == 10
    restored.update(8.0)
    assert restored.current() == 8.0


@pytest.mark.parametrize(
    'value, plain',
    [
        (dict(a=[1, 2.0, ('x', None)]), True),
        (np.float64(1.0), False),
        ([np.zeros(2)], False),
        (dict(a=object()), False),
    ],
)
def test_is_plain__accepts_what_weights_only_loading_does(value, plain):
    assert is_plain(value) == plain


def test_describe__leaves_other_networks_alone():
    assert describe(nn.Linear(2, 2)) == {}
