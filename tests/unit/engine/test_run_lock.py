"""One process at a time in a folder: who holds a lock, and when it is stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from mkd_plugin.engine import run_lock
from mkd_plugin.engine.run_lock import LOCK, holds_lock, machine, process_start, release_lock, take_lock


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def other():
    """A living process."""
    process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    yield process
    process.kill()
    process.wait()


def write_lock(folder, pid, **changes) -> str:
    """The lock of a process of this machine."""
    holder = dict(
        run='theirs', token='theirs', host='node7', pid=pid, process=process_start(pid), machine=machine(),
        folder=str(folder), since='today', command='mkd train x.py',
    )  # fmt: skip
    text = json.dumps({**holder, **changes})
    (folder / LOCK).write_text(text)
    return text


def test_take_lock__names_the_process_and_is_released_by_its_token_only(tmp_path, told):
    token, run = take_lock(tmp_path, 'mine', tell=told.append)
    holder = json.loads((tmp_path / LOCK).read_text())
    assert (holder['run'], holder['pid'], holder['token'], run) == ('mine', os.getpid(), token, 'mine')
    assert take_lock(tmp_path, 'another', tell=told.append) == (token, 'mine')  # the same process again
    release_lock(tmp_path, 'wrong')
    assert holds_lock(tmp_path, token) and told == []
    release_lock(tmp_path, token)
    assert list(tmp_path.iterdir()) == []


def test_take_lock__a_living_process_is_refused_and_a_dead_one_taken_over(tmp_path, told, other):
    text = write_lock(tmp_path, other.pid)
    with pytest.raises(
        ValueError, match=rf'process {other.pid} on node7 is training there since today \(mkd train x.py'
    ):
        take_lock(tmp_path, 'mine', tell=told.append)
    assert (tmp_path / LOCK).read_text() == text
    other.kill()
    while process_start(other.pid) is not None:  # it becomes a zombie, for nobody has asked for its exit code
        time.sleep(0.01)
    token, _ = take_lock(tmp_path, 'mine', tell=told.append)
    assert holds_lock(tmp_path, token) and f'process {other.pid} on node7 is gone. Taken over.' in told[0]


def test_take_lock__a_reused_process_id_is_recognised(tmp_path, told, other):
    write_lock(tmp_path, other.pid, process='12345')
    take_lock(tmp_path, 'mine', tell=told.append)
    assert 'is stale' in told[0]


def test_take_lock__the_lock_in_a_copy_of_a_running_folder_is_stale(tmp_path, told, other):
    (tmp_path / 'run').mkdir()
    write_lock(tmp_path / 'run', other.pid)
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    take_lock(tmp_path / 'copy', 'mine', tell=told.append)
    with pytest.raises(ValueError, match='is training there'):
        take_lock(tmp_path / 'run', 'mine', tell=told.append)


def test_take_lock__another_machine_is_judged_by_its_beat(tmp_path, told, other, monkeypatch):
    monkeypatch.setattr(run_lock, 'PATIENCE', 0.6)
    monkeypatch.setattr(run_lock, 'BEAT', 0.2)
    write_lock(tmp_path, 1, machine='elsewhere')
    beating = threading.Event()

    def beat():
        while not beating.wait(0.05):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(ValueError, match=r'process 1 on node7 is training .* delete'):
        take_lock(tmp_path, 'mine', tell=told.append)
    beating.set()
    thread.join()
    token, _ = take_lock(tmp_path, 'mine', tell=told.append)  # it was touched a moment ago: wait, then take over
    assert len(told) == 3 and 'Waiting up to' in told[0] == told[1] and 'is stale' in told[2]
    first = (tmp_path / LOCK).stat().st_mtime_ns
    deadline = time.monotonic() + 30
    while (tmp_path / LOCK).stat().st_mtime_ns == first and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / LOCK).stat().st_mtime_ns > first  # ours is touched too
    release_lock(tmp_path, token)
    write_lock(tmp_path, 1, machine='elsewhere')
    os.utime(tmp_path / LOCK, (1e9, 1e9))
    began = time.monotonic()
    take_lock(tmp_path, 'mine', tell=told.append)
    assert time.monotonic() - began < 0.3 and len(told) == 4


@pytest.mark.parametrize('content', [b'', b'\x00\xff\xfe', b'[1]', b'{"pid": "x"}', b'[' * 100_000])
def test_take_lock__rubbish_that_nobody_touches_is_stale(tmp_path, told, content):
    (tmp_path / LOCK).write_bytes(content)
    os.utime(tmp_path / LOCK, (1e9, 1e9))
    token, _ = take_lock(tmp_path, 'mine', tell=told.append)
    assert holds_lock(tmp_path, token) and [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_take_lock__gives_back_the_lock_of_a_process_that_was_faster(tmp_path):
    faster = write_lock(tmp_path, os.getpid(), token='faster')
    run_lock._remove(tmp_path / LOCK, b'the stale one that was read before')
    assert (tmp_path / LOCK).read_text() == faster and [path.name for path in tmp_path.iterdir()] == [LOCK]
