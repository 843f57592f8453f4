"""Wrong command lines: each is answered by one short message, exit code 2, and nothing written (tests/cli/mistakes.yml)."""

from __future__ import annotations

import copy
import fcntl
import functools
import gzip
import io
import json
import os
import re
import shlex
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from helpers.labelled_files import write_images, write_student
from mmengine.config import Config
from mmengine.runner import loops

from mkd_cli.main import main
from mkd_plugin.engine.run_lock import LOCK

ROOT = Path(__file__).resolve().parents[2]
GROUPS = yaml.safe_load((ROOT / 'tests/cli/mistakes.yml').read_text())
MOST_LINES = 12
BASE = f"_base_ = '{ROOT}/configs/dbot/dbot_digits.py'\n"
CLASSES = [str(digit) for digit in range(10)]
FILES = {
    'broken.py': 'model = dict(\n',
    'raises.py': 'x = 1\ny = x / 0\n',
    'nobase.py': "_base_ = 'nothing.py'\n",
    'unknown_host.py': "_base_ = 'mmnothing::a.py'\n",
    'empty.py': '',
    'override.py': f"{BASE}model = dict(teachers=dict(boot=dict(type='ViTTeacher', arch='b')))\n",
    'override_string.py': f'{BASE}data_root = dict(a=1)\n',
    'imports.py': f"{BASE}custom_imports = dict(imports=['no_such_module'])\n",
    'data.json': '{"a": 1}',
    'broken.json': '{"a": ',
    'broken.yml': 'a: [1\nb: }',
    'text.pth': 'not a checkpoint',
    'empty.pth': '',
    'list.txt': 'a 1\n',
    'wrong_label.txt': 'ant/0.png 0\nbee/0.png one\n',
    'high_label.txt': '0/0.png 0\n1/0.png 10\n',
    'emptydir/.keep': '',
    'folder.npz/kept': '',
    'folder.html/kept': '',
    'unreadable/a.jpg': 'no image',
    'unreadable/b.jpg': 'no image',
    'own_root.py': f"{BASE}data_root = '/tmp'\n",
    'misspelt.py': f'{BASE}train_cfgg = dict(max_epochs=3)\n',
    'used/metrics.jsonl': '{"iter": 1}\n',
    'used/epoch_1.pth': 'a checkpoint',
    'finished/epoch_1.pth': 'a checkpoint',
}


@pytest.fixture(scope='session')
def names(tmp_path_factory) -> dict[str, str]:
    """The words in braces of mistakes.yml, and what they stand for."""
    root = tmp_path_factory.mktemp('mistakes')
    for name, text in FILES.items():
        path = root / 'files' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / 'files/emptydir/.keep').unlink()
    (root / 'files/binary.py').write_bytes(bytes(range(256)))
    write_escape_sequence(root / 'files/global.pth')
    for part in ('train', 'val'):
        write_images(root / 'images', part)
        write_images(root / 'digits', part, CLASSES)
    (root / 'digits/meta').mkdir()
    (root / 'digits/meta/10_0.txt').write_text(''.join(f'{label}/0.png {label}\n' for label in CLASSES))
    student = write_student(root, 'student.pth')
    write_other_weights(student, root / 'files')
    write_lock(root / 'files/used')
    (root / 'packed').mkdir()
    (root / 'packed/a.tar.gz').write_bytes(gzip.compress(b'a' * 10240))
    places = {name: str(root / name) for name in ('files', 'images', 'digits', 'packed')}
    return {'repo': str(ROOT), 'student': str(student), **places}


def write_other_weights(student: Path, folder: Path) -> None:
    """Write the student with a NaN, with integers, without what a run needs to go on, and wider."""
    weights = torch.load(student)['state_dict']
    first = next(iter(weights))
    torch.save({**weights, first: weights[first] * float('nan')}, folder / 'nan.pth')
    torch.save({**weights, first: weights[first].long()}, folder / 'integers.pth')
    torch.save({'state_dict': weights}, folder / 'no_meta.pth')
    torch.save({'layer1.0.conv1.weight': torch.zeros(4, 4, 1, 1)}, folder / 'resnet.pth')


def write_lock(folder: Path) -> None:
    """Lock a folder for as long as the tests run, in the name of another process."""
    (folder / LOCK).write_text(json.dumps(dict(pid=1, host='here', since='today', command='mkd train')))
    fcntl.flock(os.open(folder / LOCK, os.O_RDWR), fcntl.LOCK_EX)


def write_escape_sequence(path: Path) -> None:
    """Write a checkpoint that names a function whose name would colour the terminal."""

    class Named:
        def __reduce__(self):
            return print, ()

    buffer = io.BytesIO()
    torch.save({'x': Named()}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'builtin__\nprint\n', b'builtin__\n\x1b[31mevil\x1b[0m\n'))


def filled(text: str, names: dict[str, str]) -> str:
    """Replace the words in braces."""
    for name in re.findall(r'\{(\w+)\}', text):
        text = text.replace(f'{{{name}}}', names[name])
    return text


def arguments_of(group: dict, line: str, names: dict[str, str]) -> list[str]:
    return shlex.split(filled(f'{group.get("begin", "")} {line}', names))


def files_below(*folders: Path) -> set[tuple[str, float]]:
    """Names of files and folders, and when each file was written."""
    found = {path: path.stat() for folder in folders for path in folder.rglob('*')}
    return {(str(path), status.st_mtime if path.is_file() else 0) for path, status in found.items()}


def answer(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; return exit code and all that it prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
        except Exception as error:  # would be a traceback
            return 1, f'Traceback: {type(error).__name__}: {error}'
    return code, printed.getvalue()


def refused(self) -> None:
    raise AssertionError('The command line was accepted.')


@pytest.fixture
def quick(monkeypatch) -> None:
    """Read each config file once, and train nothing if a line is accepted."""
    for name in ('EpochBasedTrainLoop', 'IterBasedTrainLoop', 'TestLoop'):
        monkeypatch.setattr(getattr(loops, name), 'run', refused)
    read = functools.cache(Config.fromfile)
    monkeypatch.setattr(Config, 'fromfile', lambda path: copy.deepcopy(read(path)))


def test_list__is_long_and_covers_every_command():
    lines = [f'{group.get("begin", "")} {line}' for group in GROUPS.values() for line in group['lines']]
    assert len(lines) >= 250
    from mkd_cli.main import COMMANDS

    assert set(COMMANDS) <= {line.split()[0] for line in lines if line.split()}


@pytest.mark.parametrize('group', GROUPS)
def test_mistakes__are_answered_by_one_message(group, names, tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    about, wrong = GROUPS[group], []
    given = Path(names['student']).parent
    before = files_below(tmp_path, given)
    for line, sentence in about['lines'].items():
        code, text = answer(arguments_of(about, line, names))
        wanted = filled(sentence, names)
        problems = [
            f'exit code {code}' if code != about.get('code', 2) else '',
            'traceback' if 'Traceback' in text else '',
            f'{len(text.splitlines())} lines' if len(text.splitlines()) > about.get('most_lines', MOST_LINES) else '',
            f'said {text.count(wanted)} times: {wanted}' if text.count(wanted) != 1 else '',
            'unprintable' if any(not letter.isprintable() for letter in text.replace('\n', '')) else '',
        ]
        if any(problems):
            wrong.append(f'{line}\n    {"; ".join(filter(None, problems))}\n    {text[:600]}')
    if 'code' not in about:
        written = files_below(tmp_path, given) ^ before
        wrong += [f'{path} was written or removed' for path, _ in written]
    assert not wrong, '\n'.join(wrong)
