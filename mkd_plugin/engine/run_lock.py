"""The lock of a run's folder: one process at a time, recognised as stale when that process is gone."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LOCK = 'run.lock'
BEAT = 20.0  # seconds between two touches of the lock
PATIENCE = (
    90.0  # seconds without a touch after which the lock of another machine is stale; NFS caches times for up to 60
)
Tell = Callable[[str], Any]


def take_lock(folder: Path, run: str, *, tell: Tell) -> tuple[str, str]:
    """Lock a folder for this process.

    The lock names run, host, process and command. It is stale if its process was on this machine and no longer exists, or
    if it was on another one and has not touched the file for ``PATIENCE`` seconds; times are the file server's.

    Args:
        folder: An existing folder.
        run: Id of the run that will write to it.
        tell: Called with a line when a stale lock is taken over, or when it takes time to find out.

    Returns:
        The lock's token, to be passed to :func:`release_lock`, and the id of the run: if this process holds the lock
        already, both are those of that lock.

    Raises:
        ValueError: Another process holds the lock.
    """
    path, token = folder / LOCK, uuid.uuid4().hex
    content = dict(
        run=run, token=token, host=socket.gethostname(), pid=os.getpid(), process=process_start(os.getpid()),
        machine=machine(), folder=str(folder), since=time.strftime('%Y-%m-%d %H:%M:%S'), command=shlex.join(sys.argv),
    )  # fmt: skip
    while True:
        with suppress(FileExistsError), path.open('x') as file:
            json.dump(content, file)
            break
        text = _read(path)
        holder = _parse(text)
        if text is None:  # released in the meantime
            continue
        if holder.get('pid') == os.getpid() and holder.get('machine') == machine() and _runs(holder):
            return holder['token'], holder['run']
        if _is_alive(path, text, holder, tell):
            raise ValueError(
                f'work_dir={folder}: process {holder.get("pid", "?")} on {holder.get("host", "an unknown host")} is '
                f'training there since {holder.get("since", "?")} ({holder.get("command", "?")}). Wait for it, end it, or '
                f'name another folder with --work-dir. If there is no such process, delete {path}.'
            )
        tell(f'{path} is stale: process {holder.get("pid", "?")} on {holder.get("host", "?")} is gone. Taken over.')
        _remove(path, text)
    threading.Thread(target=_beat, args=(path, token), daemon=True).start()
    return token, run


def release_lock(folder: Path, token: str) -> None:
    """Remove the lock of this token; nothing if there is none."""
    with suppress(OSError):
        if holds_lock(folder, token):
            (folder / LOCK).unlink()


def holds_lock(folder: Path, token: str) -> bool:
    """Whether the lock of a folder is that of this token."""
    return bool(_parse(_read(folder / LOCK)).get('token') == token)


def machine() -> str:
    """Name where a process id is valid: a boot of a machine and a namespace of processes; elsewhere the host's name."""
    try:
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot}:{os.stat("/proc/self/ns/pid").st_ino}'
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> str | None:
    """Return when a process started, so that a reused id is not mistaken for it; None if there is no such process."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()  # from the third field on
    except OSError:
        if Path('/proc/self/stat').exists():
            return None
        try:
            os.kill(pid, 0)  # no /proc, as on macOS
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ''
    return None if fields[0] in 'ZX' else fields[19]  # a zombie has ended


def _runs(holder: dict[str, Any]) -> bool:
    started = process_start(holder['pid']) if isinstance(holder.get('pid'), int) else None
    return started is not None and started == holder.get('process')


def _is_alive(path: Path, text: bytes, holder: dict[str, Any], tell: Tell) -> bool:
    """Whether the process that took a lock still runs in this folder."""
    if holder.get('machine') != machine():
        return _beats(path, tell)  # a process id says nothing here
    origin = Path(str(holder.get('folder')), LOCK)
    copied = _read(origin) == text and not origin.samefile(path)  # the folder of a living run was copied
    return _runs(holder) and not copied


def _beats(path: Path, tell: Tell) -> bool:
    """Whether a lock is being touched."""

    def touched() -> float:
        try:
            with path.open('rb') as file:  # NFS asks the server for the time when a file is opened
                return os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return 0.0

    first = touched()
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        now = os.fstat(probe.fileno()).st_mtime  # the server's clock
    if now - first > PATIENCE:
        return False
    tell(f'{path} is of another machine. Waiting up to {PATIENCE:.0f} s to see whether its run is alive …')
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(BEAT / 20)
        if (seen := touched()) != first:
            return seen > 0
    return False


def _beat(path: Path, token: str) -> None:
    """Touch a lock until it is released. A file server that does not answer for a while is asked again."""
    held = True
    while held:
        with suppress(OSError):
            held = holds_lock(path.parent, token)
            if held:
                os.utime(path)
        time.sleep(BEAT)


def _remove(path: Path, text: bytes) -> None:
    """Remove a stale lock, but not one that another process has put in its place in the meantime."""
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if aside.read_bytes() != text:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse(text: bytes | None) -> dict[str, Any]:
    """The content of a lock; empty if it is damaged or not there."""
    try:
        content = json.loads(text or b'')
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
