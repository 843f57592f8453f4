"""Atomic writes, hashes of files, values that JSON can hold, and text from files that nobody vouches for."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from torch import Tensor

TEMPORARY = '.tmp'  # ending of files that are being written


@contextmanager
def atomic_write(path: str | Path, mode: Literal['w', 'wb'] = 'w') -> Iterator[IO[Any]]:
    """Open a file that appears under its name only once it is complete.

    The content goes to a temporary file in the same folder. When the block ends it is flushed to disk and renamed to
    ``path``. If the block raises, the temporary file is deleted and ``path`` stays as it was.

    Args:
        path: The file; its folder must exist.
        mode: ``'w'`` for text (UTF-8), ``'wb'`` for bytes.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    # processes that write the same file each have their own temporary one
    temporary = path.with_name(f'.{path.name}.{os.getpid()}{TEMPORARY}')
    try:
        with temporary.open(mode, encoding=None if mode == 'wb' else 'utf-8') as file:
            yield file
        move_into_place(temporary, path)
    except BaseException:
        remove_path(temporary)
        raise


@contextmanager
def lock_file(path: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Lock a file. Yield its descriptor, or None if another process holds the lock and this one does not ``wait``.

    The lock is released when every process that inherited the descriptor has ended, even if this one was killed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def move_into_place(temporary: Path, path: Path) -> None:
    """Flush a file, or a folder of files, to disk and rename it to ``path``, replacing what is there."""
    for file in [temporary, *temporary.rglob('*')]:
        _flush(file)
    old = None
    if path.is_dir() or (path.exists() and temporary.is_dir()):  # os.replace refuses either
        old = path.with_name(f'{path.stem}.old{path.suffix}')  # still a checkpoint if the run is killed here
        remove_path(old)
        os.replace(path, old)
    os.replace(temporary, path)
    _flush(path.parent)
    if old is not None:
        remove_path(old)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_path(path: Path) -> None:
    """Delete a file or folder, if it exists and can be deleted."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; for a folder, that of the list of its files' names and hashes."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        listing = '\n'.join(f'{file.name} {sha256_of(file)}' for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def json_dict(text: bytes) -> dict[str, Any]:
    """Read a JSON object; empty if the text is damaged or something else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def plain(value: Any) -> Any:
    """Convert a value for JSON: tensors to lists, numbers that are not finite to None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str, limit: int | None = None) -> str:
    """Escape what could control the terminal, except line breaks, and cut the text to ``limit`` characters."""
    shown = text if limit is None or len(text) <= limit else text[:limit] + '…'
    return ''.join(letter if letter.isprintable() or letter == '\n' else repr(letter)[1:-1] for letter in shown)
