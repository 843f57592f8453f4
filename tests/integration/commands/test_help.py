"""`--help` of every command and every script writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mkd_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
SHELL = [path for path in (ROOT / 'tools').glob('*.sh') if path.name != 'launch.sh']  # which others source
SCRIPTS = [path for path in (ROOT / 'tools').rglob('*.py') if '__main__' in path.read_text()]
TOOLS = sorted([*SCRIPTS, *SHELL])


def run(folder, *command):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'PYTHONDONTWRITEBYTECODE': '1'}
    return subprocess.run([*map(str, command), '--help'], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize('name', ['', *COMMANDS])
def test_mkd__help_writes_nothing(tmp_path, name):
    done = run(tmp_path, sys.executable, '-m', 'mkd_cli.main', *([name] if name else []))
    assert done.returncode == 0 and 'usage: ' in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_tools__are_found():
    assert len(SHELL) >= 8 and len(SCRIPTS) >= 25


@pytest.mark.parametrize('script', TOOLS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tools__help_writes_nothing(tmp_path, script):
    if script.name == 'quickstart.sh':
        pytest.skip('it sets the environment up before tools/quickstart.py reads the arguments')
    before = subprocess.run(['git', 'status', '--short'], cwd=ROOT, capture_output=True, text=True).stdout
    done = run(tmp_path, *(['bash', script] if script.suffix == '.sh' else [sys.executable, script]))
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert not list(tmp_path.iterdir())
    assert subprocess.run(['git', 'status', '--short'], cwd=ROOT, capture_output=True, text=True).stdout == before


def test_tools__python_scripts_are_thin():
    thin = [*(ROOT / 'tools').glob('*.py'), *(ROOT / 'tools/dataset_tools').glob('*.py')]
    assert len(thin) > 10
    for path in thin:
        if path.name != 'quickstart.py':
            assert len(path.read_text().splitlines()) <= 10 and 'from mkd_cli.' in path.read_text(), path
