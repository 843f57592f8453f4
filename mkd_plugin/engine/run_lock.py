"""The lock of a run's folder: one process at a time. The system releases it when that process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mkd_plugin.utils.files import json_dict

LOCK = 'run.lock'
LONGEST = 2**16  # bytes that are read of a lock
HELD: dict[Path, tuple[int, str]] = {}  # folders that this process has locked: descriptor of the file, id of the run
Tell = Callable[[str], Any]


def take_lock(folder: Path, run: str, *, tell: Tell) -> str:
    """Lock an existing folder for this process. The file names run, host, process and command for the messages of others.

    ``tell`` gets a line if the process that held the lock ended without releasing it, or if the file system has no locks.
    Returns the id of the run; if this process holds the lock already, that of the lock.

    Raises:
        ValueError: Another process holds the lock.
    """
    if holds_lock(folder):
        return HELD[folder][1]
    path, file, locked = folder / LOCK, -1, True
    while not _is_at(path, file):  # the process that held it has removed the file that was opened
        _close(file)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
            break
        except OSError as error:
            tell(f'{path} protects nothing: this file system has no locks ({error.strerror}). Start no second run.')
    text = os.pread(file, LONGEST, 0)
    holder = json_dict(text)
    if not locked:
        _close(file)
        raise ValueError(
            f'work_dir={folder}: process {holder.get("pid", "?")} on {holder.get("host", "an unknown host")} is '
            f'training there since {holder.get("since", "?")} ({holder.get("command", "?")}). Wait for it, end it, or '
            f'name another folder with --work-dir. If there is no such process, delete {path}.'
        )
    if text:
        tell(f'{path} is stale: process {holder.get("pid", "?")} on {holder.get("host", "?")} is gone. Taken over.')
    content = dict(
        run=run, host=socket.gethostname(), pid=os.getpid(), since=time.strftime('%Y-%m-%d %H:%M:%S'),
        command=shlex.join(sys.argv),
    )  # fmt: skip
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(content).encode(), 0)
    HELD[folder] = file, run
    return run


def release_lock(folder: Path) -> None:
    """Remove the lock of a folder if this process holds it."""
    if holds_lock(folder):
        with suppress(OSError):
            (folder / LOCK).unlink()
    _close(HELD.pop(folder, (-1, ''))[0])


def holds_lock(folder: Path) -> bool:
    """Whether this process has locked a folder, and its lock was not deleted or replaced."""
    return _is_at(folder / LOCK, HELD.get(folder, (-1, ''))[0])


def _is_at(path: Path, file: int) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except OSError:
        return False


def _close(file: int) -> None:
    with suppress(OSError):
        os.close(file)


def _close_all() -> None:
    """Leave the locks to the parent: a data worker that outlives it must not keep them."""
    while HELD:
        _close(HELD.popitem()[1][0])


os.register_at_fork(after_in_child=_close_all)
