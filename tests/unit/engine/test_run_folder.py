"""Which run a folder belongs to, what a fresh start does in a used one, and which files are ours."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from mkd_plugin.engine.checkpoints import point_to
from mkd_plugin.engine.run_folder import claim, files_of_run, held, is_half_written, resume_command, run_of
from mkd_plugin.engine.run_lock import LOCK


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def used(tmp_path):
    """A folder of a finished run."""
    folder = claim(tmp_path / 'run', resume=False)
    (folder.path / 'metrics.jsonl').write_text('{"iter": 1}\n')
    (folder.path / 'epoch_1.pth').write_bytes(b'weights')
    folder.release()
    return folder


def test_claim__a_fresh_start_in_a_used_folder_is_refused_and_changes_nothing(used):
    before = content(used.path)
    with pytest.raises(ValueError) as caught:
        claim(used.path, resume=False)
    for part in ('metrics.jsonl, epoch_1.pth', '--resume', '--work-dir', '--overwrite'):
        assert part in str(caught.value)
    assert content(used.path) == before


def test_claim__overwrite_renames_and_deletes_nothing(used, tmp_path):
    told, before = [], content(used.path)
    for number in (1, 2):  # twice within a second
        new = claim(used.path, resume=False, overwrite=True, tell=told.append)
        assert new.run != used.run and not new.known and set(content(used.path)) == {LOCK, 'run.json'}
        (new.path / 'epoch_1.pth').write_bytes(b'others')
        new.release()
        assert len(list(tmp_path.glob('run.old-*'))) == number
    first = min(tmp_path.glob('run.old-*'), key=lambda path: path.name)
    assert content(first) == before and str(first) in told[0]


def test_claim__resume_keeps_the_run_and_a_copy_is_the_same_run(used, tmp_path):
    shutil.copytree(used.path, tmp_path / 'copy')
    for folder in (used.path, tmp_path / 'copy'):
        again = claim(folder, resume=True)
        assert (again.run, again.known) == (used.run, True)
        again.release()
    assert not claim(tmp_path / 'empty', resume=True).known


def test_claim__logs_and_a_start_that_failed_do_not_make_a_folder_used(tmp_path):
    folder = claim(tmp_path, resume=False)
    (tmp_path / '20260101_000000').mkdir()
    for name in ('dbot_digits.py', 'teacher.pth', 'notes.txt'):
        (tmp_path / name).write_text('x')
    (tmp_path / 'metrics.jsonl').touch()
    folder.release()
    assert files_of_run(tmp_path) == [] and claim(tmp_path, resume=False).run != folder.run


def test_claim__a_damaged_identity_is_that_of_no_run(used):
    for text in (b'\xff\x00', b'[]', b'{"run": 3}', b'{'):
        (used.path / 'run.json').write_bytes(text)
        assert run_of(used.path) is None
    assert not claim(used.path, resume=True).known


def test_check__notices_a_deleted_folder_and_another_process(used):
    folder = claim(used.path, resume=True)
    (folder.path / LOCK).unlink()
    folder.check()  # only the lock is gone
    shutil.rmtree(folder.path)
    with pytest.raises(ValueError, match='was deleted or moved while the run was writing'):
        folder.check()
    folder.path.mkdir()
    (folder.path / LOCK).write_text(json.dumps(dict(token='theirs')))
    with pytest.raises(ValueError, match='another process has taken this folder over'):
        folder.check()


def test_held__is_the_same_folder_by_any_path(tmp_path):
    with held(tmp_path / 'a' / '..' / 'x', resume=False, overwrite=False):
        assert claim(tmp_path / 'x', resume=False).path == tmp_path / 'x'


def test_held__names_a_full_disk_and_releases_the_lock(tmp_path):
    full = r'nothing more can be written \(No space left on device\).*--resume'
    with pytest.raises(OSError, match=full) as caught, held(tmp_path, resume=False, overwrite=False):
        raise OSError(28, 'No space left on device')
    assert caught.value.filename is None and not (tmp_path / LOCK).exists()
    explained = OSError(28, 'epoch_2.pth could not be written (No space left on device)')
    with pytest.raises(OSError, match='epoch_2.pth') as caught, held(tmp_path, resume=False, overwrite=False):
        raise explained
    assert caught.value is explained


@pytest.mark.parametrize(
    'name, ours',
    [
        ('epoch_3.pth.tmp', True), ('iter_300.pth.tmp', True), ('stage_0.pth.tmp', True), ('preempted.pth.tmp', True),
        ('best_acc_epoch_3.pth.tmp', True), ('.metrics.jsonl.77.tmp', True), ('.last_checkpoint.7.tmp', True),
        ('net-12.pt.tmp', True), ('thesis.tmp', False), ('data.pth.tmp', False), ('.swap.7.tmp', False),
        ('epoch_x.pth.tmp', False), ('epoch_3.pth', False), ('metrics.jsonl.tmp', False),
    ],
)  # fmt: skip
def test_is_half_written__ours_alone(name, ours):
    assert is_half_written(name, 'net-{}.pt') == ours


def test_point_to__is_relative_within_the_folder(tmp_path):
    for given, wanted in (
        (f'{tmp_path}/epoch_1.pth', 'epoch_1.pth'),
        ('/elsewhere/run/epoch_1.pth', '/elsewhere/run/epoch_1.pth'),
        ('elsewhere/epoch_1.pth', str(Path('elsewhere/epoch_1.pth').absolute())),
        ('s3://bucket/epoch_1.pth', 's3://bucket/epoch_1.pth'),
    ):
        point_to(given, work_dir=tmp_path)
        assert (tmp_path / 'last_checkpoint').read_text() == wanted


@pytest.mark.parametrize(
    'given, launcher, wanted',
    [
        (['/env/bin/mkd', 'train', 'a b.py'], None, "mkd train 'a b.py' --resume"),
        (['tools/train.py', 'a.py', '--resume', 'x.pth', '--amp'], None, 'python tools/train.py a.py --amp --resume'),
        (['tools/pretrain.py', 'photos'], None, 'python tools/pretrain.py photos --resume'),
        (['tools/train.py', 'a.py', '--overwrite'], None, 'python tools/train.py a.py --resume'),
        (['tools/train.py', 'a.py', '--overw', '--resum', 'x.pth'], None, 'python tools/train.py a.py --resume'),
        (['tools/train.py', '--resume=auto', 'a.py'], None, 'python tools/train.py a.py --resume'),
        (['tools/train.py', 'a.py', '--launcher', 'pytorch'], 'bash tools/dist_train.sh a.py 2 ',
         'bash tools/dist_train.sh a.py 2 --resume'),
        (['/usr/bin/ipykernel'], None, None),
    ],
)  # fmt: skip
def test_resume_command__is_the_one_that_was_given(monkeypatch, given, launcher, wanted):
    monkeypatch.setattr(sys, 'argv', given)
    monkeypatch.delenv('MKD_COMMAND', raising=False)
    if launcher is not None:
        monkeypatch.setenv('MKD_COMMAND', launcher)
    assert resume_command() == wanted
