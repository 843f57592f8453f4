"""mkd doctor: versions, a stale environment, missing parts and the commands that install them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from mkd_cli import doctor, environment
from mkd_plugin.compat import hosts
from mkd_plugin.preflight.config import load_config, read_config


@pytest.fixture
def without_dense(monkeypatch):
    """Pretend that mmdet and mmseg are not installed."""
    installed = hosts.version

    def version(name):
        if 'det' in name or 'seg' in name:
            raise PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(hosts, 'version', version)
    monkeypatch.setattr(hosts, 'find_spec', lambda name: None)


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A checkout whose environment is up to date."""
    for path in (
        'tools/setup_venv.sh',
        'requirements/b.txt',
        'requirements/a.txt',
        'setup.py',
        'mkd_plugin/version.py',
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(f'{path}\n')
    monkeypatch.setattr(environment, 'ROOT', tmp_path)
    monkeypatch.setattr(sys, 'prefix', str(tmp_path / 'venv'))
    (tmp_path / 'venv').mkdir()
    script = f'root={tmp_path}; ' + '{ echo "$root"; cat "$root"/requirements/*.txt "$root"/setup.py ' \
        '"$root"/mkd_plugin/version.py; } | sha256sum'  # fmt: skip
    stamp = subprocess.run(['bash', '-c', script], check=True, capture_output=True, text=True).stdout
    (tmp_path / 'venv' / 'mkd_plugin.sha256').write_text(stamp)
    return tmp_path


def test_run__describes_the_environment(capsys):
    doctor.main([])
    shown = capsys.readouterr().out
    for name in ('Python: ', 'mkd_plugin: ', 'mmengine: 0.10.', 'torch: ', 'CPU cores: '):
        assert name in shown
    assert shown.rstrip().endswith('ready')


def test_stale_environment__compares_the_stamp_of_the_script(checkout):
    assert environment.stale_environment() is None
    (checkout / 'requirements/a.txt').write_text('torch==3')
    sentence = environment.stale_environment()
    assert 'is older than this checkout: run `bash ' in sentence and sentence.count('\n') == 0
    assert environment.explain_missing_module(ModuleNotFoundError('no x', name='x')).endswith(sentence)
    (checkout / 'venv/mkd_plugin.sha256').unlink()  # an environment of the user's own
    assert environment.stale_environment() is None


def test_setup_venv__hashes_what_the_doctor_hashes():
    root = Path(__file__).resolve().parents[3]
    text = (root / 'tools/setup_venv.sh').read_text()
    assert 'cat "$root"/requirements/*.txt "$root"/setup.py "$root"/mkd_plugin/version.py; } | sha256sum' in text


def test_missing_parts__names_the_command(without_dense):
    sentences = list(doctor.missing_parts())
    assert sentences[0].startswith('object detection needs mmdet, which is not installed: run `pip install -e "')
    assert '[onedl-dense]"`.' in sentences[0] or '[openmmlab-dense]"`.' in sentences[0]
    assert sentences[1].startswith('semantic segmentation needs mmseg')


def test_load_config__needs_a_missing_host(without_dense, tmp_path):
    (tmp_path / 'c.py').write_text("default_scope = 'mmdet'")
    with pytest.raises(
        ValueError, match=r'c\.py needs mmdet, which is not installed: run `pip install .*-dense\]"`\.$'
    ):
        load_config(str(tmp_path / 'c.py'))


def test_read_config__inherits_from_a_missing_host(without_dense, tmp_path, monkeypatch):
    from mmengine.config import Config

    def fromfile(name):
        raise ModuleNotFoundError('mmdet is not installed, please install mmdet manually')

    monkeypatch.setattr(Config, 'fromfile', fromfile)
    (tmp_path / 'c.py').touch()
    with pytest.raises(ValueError, match=r'c\.py needs mmdet, which is not installed: run `pip install'):
        read_config(str(tmp_path / 'c.py'), {})


def test_explain_missing_host__installed_or_unknown():
    assert hosts.explain_missing_host('mmengine', 'x') is None
    assert hosts.explain_missing_host('numpy', 'x') is None
