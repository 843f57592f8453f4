"""Atomic writes leave a complete file or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkd_plugin.utils import files
from mkd_plugin.utils.files import atomic_write, move_into_place, write_whole


@pytest.mark.parametrize('mode, content', [('w', 'naïve\n'), ('wb', b'\x00\xff')])
def test_atomic_write__replaces_the_file_when_the_block_ends(tmp_path, mode, content):
    path = tmp_path / 'file'
    path.write_text('old')
    with atomic_write(path, mode) as file:
        file.write(content)
        file.flush()
        assert path.read_text() == 'old'
    assert path.read_bytes() == (content if mode == 'wb' else content.encode())
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write__an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write('half')
        raise KeyboardInterrupt
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_atomic_write__flushes_the_content_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    steps = []
    flush, replace = files._flush, files.os.replace
    monkeypatch.setattr(files, '_flush', lambda path: (steps.append(path.name), flush(path)))
    monkeypatch.setattr(files.os, 'replace', lambda old, new: (steps.append('rename'), replace(old, new)))
    write_whole(tmp_path / 'file', 'text')
    assert steps[0].startswith('.file.') and steps[1:] == ['rename', tmp_path.name]


def test_move_into_place__replaces_a_folder(tmp_path):
    for name in ('new', 'old'):
        Path(tmp_path, name).mkdir()
        Path(tmp_path, name, name).write_text(name)
    move_into_place(tmp_path / 'new', tmp_path / 'old')
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*')] == ['old', 'old/new']


@pytest.mark.parametrize('is_folder', [True, False])
def test_move_into_place__killed_at_any_rename_leaves_a_checkpoint(tmp_path, monkeypatch, is_folder):
    old, new = tmp_path / 'recent.pth', tmp_path / 'recent.pth.tmp'
    new.mkdir()
    (new / 'run.pth').write_text('new')
    old.mkdir() if is_folder else old.write_text('old')
    replace, seen = files.os.replace, []

    def noting(source, target):
        seen.append(sorted(path.name for path in tmp_path.glob('*.pth')))
        replace(source, target)

    monkeypatch.setattr(files.os, 'replace', noting)
    move_into_place(new, old)
    assert seen == [['recent.pth'], ['recent.old.pth']]
    assert [path.name for path in tmp_path.iterdir()] == ['recent.pth'] and (old / 'run.pth').read_text() == 'new'
