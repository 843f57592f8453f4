"""One process at a time in a folder: who holds a lock, and when it is stale."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mkd_plugin.engine.run_lock import LOCK, holds_lock, release_lock, take_lock

HOLD = (
    'import sys, time; from pathlib import Path; from mkd_plugin.engine.run_lock import take_lock\n'
    "take_lock(Path(sys.argv[1]), 'theirs', tell=print); print('locked', flush=True); time.sleep(600)"
)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def other(tmp_path):
    """A living process that has locked the folder."""
    process = subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == 'locked\n'
    yield process
    process.kill()
    process.communicate()


def test_take_lock__names_the_process_and_is_removed_when_it_is_released(tmp_path, told):
    assert take_lock(tmp_path, 'mine', tell=told.append) == 'mine'
    holder = json.loads((tmp_path / LOCK).read_text())
    assert (holder['run'], holder['pid']) == ('mine', os.getpid())
    assert take_lock(tmp_path, 'another', tell=told.append) == 'mine'  # the same process again
    assert holds_lock(tmp_path) and told == []
    release_lock(tmp_path)
    release_lock(tmp_path)  # nothing to do
    assert list(tmp_path.iterdir()) == [] and not holds_lock(tmp_path)


def test_take_lock__a_living_process_is_refused_and_a_dead_one_taken_over(tmp_path, told, other):
    before = (tmp_path / LOCK).read_bytes()
    with pytest.raises(ValueError, match=rf'process {other.pid} on \S+ is training there since .* delete'):
        take_lock(tmp_path, 'mine', tell=told.append)
    release_lock(tmp_path)  # it is not ours
    assert (tmp_path / LOCK).read_bytes() == before
    other.kill()
    deadline = time.monotonic() + 30  # at once, but not before the system has ended the process
    while not holds_lock(tmp_path) and time.monotonic() < deadline:
        try:
            take_lock(tmp_path, 'mine', tell=told.append)
        except ValueError:
            time.sleep(0.01)
    assert f'process {other.pid} on' in told[0] and 'is gone. Taken over.' in told[0]
    release_lock(tmp_path)


def test_take_lock__the_lock_in_a_copy_of_a_running_folder_is_stale(tmp_path, told, other):
    shutil.copytree(tmp_path, tmp_path / 'copy')
    take_lock(tmp_path / 'copy', 'mine', tell=told.append)
    with pytest.raises(ValueError, match='is training there'):
        take_lock(tmp_path, 'mine', tell=told.append)
    release_lock(tmp_path / 'copy')


def test_take_lock__a_data_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path):
    fork = (
        f'{HOLD.split("; print")[0]}\n'
        'import os\npid = os.fork()\nif not pid: time.sleep(600)\n'
        'print(pid, flush=True); os.kill(os.getpid(), 9)'
    )
    with subprocess.Popen([sys.executable, '-c', fork, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert process.wait() == -signal.SIGKILL
        try:
            assert take_lock(tmp_path, 'mine', tell=lambda line: None) == 'mine'
        finally:
            os.kill(worker, signal.SIGKILL)
    release_lock(tmp_path)


def test_holds_lock__only_in_the_process_that_took_it_and_while_the_file_is_its_own(tmp_path, told):
    take_lock(tmp_path, 'mine', tell=told.append)
    with multiprocessing.get_context('fork').Pool(1) as pool:
        assert pool.apply(holds_lock, (tmp_path,)) is False
    assert holds_lock(tmp_path)
    (tmp_path / LOCK).rename(tmp_path / 'moved')
    (tmp_path / LOCK).write_text('theirs')
    assert not holds_lock(tmp_path)
    release_lock(tmp_path)
    assert (tmp_path / LOCK).read_text() == 'theirs'


@pytest.mark.parametrize('content', [b'', b'\x00\xff\xfe', b'[1]', b'{"pid": "x"}', b'[' * 100_000])
def test_take_lock__rubbish_that_nobody_holds_is_stale(tmp_path, told, content):
    (tmp_path / LOCK).write_bytes(content)
    assert take_lock(tmp_path, 'mine', tell=told.append) == 'mine'
    assert json.loads((tmp_path / LOCK).read_text())['run'] == 'mine' and len(told) == bool(content)
    release_lock(tmp_path)
