"""Files that are either whole or not there, and which checkpoint of a folder is the newest whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner

from mkd_plugin.checkpoint.read import HARMLESS, UNREADABLE

__all__ = ['last_good', 'newest_checkpoint', 'point_to', 'read_meta', 'save_atomically']

HALF = '.tmp'
POINTER = 'last_checkpoint'


def save_atomically(runner: Runner, folder: str | Path, filename: str, **options: Any) -> None:
    """``runner.save_checkpoint`` that leaves the whole file or none: write beside it, flush to disk, rename.

    Args:
        runner: The run.
        folder: Where to; an object store (``s3://…``) does the same by itself.
        filename: Name of the file.
        options: Further arguments of ``runner.save_checkpoint``.

    Raises:
        OSError: It cannot be written, for example because the disk is full; the last good checkpoint is named.
    """
    if '://' in str(folder):
        runner.save_checkpoint(str(folder), filename, **options)
        return
    whole, half = Path(folder, filename), Path(folder, filename + HALF)
    try:
        runner.save_checkpoint(str(folder), half.name, **options)
        barrier()  # under some strategies every rank writes its part
        if is_main_process():
            put_in_place(half, whole)
    except OSError as error:
        remove(half)
        raise OSError(
            error.errno,
            f'{whole} could not be written ({error.strerror or error}). The last good checkpoint is '
            f'{last_good(runner.work_dir)}. Free space or make the folder writable, then start the run again '
            'with resume=True',
        ) from error


def put_in_place(half: Path, whole: Path) -> None:
    """Flush a file (or a folder of files) to the disk, then give it its name."""
    for file in [half, *half.rglob('*')]:
        flush(file)
    if whole.is_dir():  # a folder cannot be replaced in one step
        shutil.rmtree(whole)
    os.replace(half, whole)
    flush(whole.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk."""
    if path.is_dir() and os.name != 'posix':
        return
    handle = os.open(path, os.O_RDONLY if os.name == 'posix' else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or folder if it is there."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def point_to(checkpoint: str, *, work_dir: str | Path) -> None:
    """Write mmengine's ``last_checkpoint``, from which its own tools resume."""
    half = Path(work_dir, POINTER + HALF)
    half.write_text(checkpoint)
    put_in_place(half, Path(work_dir, POINTER))


def newest_checkpoint(work_dir: str | Path, *, warn: Callable[[str], Any] = lambda message: None) -> str | None:
    """The checkpoint that is furthest in the run, of those that are whole and can be resumed.

    Neither names nor times count, only the iteration in the file: clocks are set back, and files are copied.

    Args:
        work_dir: The run's folder; where its ``last_checkpoint`` points to is searched as well.
        warn: Told about each damaged file.

    Raises:
        ValueError: All there are are damaged; to start anew without a word would hide it.
    """
    pointer = Path(work_dir, POINTER)
    last = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in last:
        return last
    found, damaged = [], []
    for path in candidates(Path(work_dir), last):
        try:
            meta = read_meta(path)
        except UNREADABLE as error:
            damaged.append(path)
            warn(f'{path} is passed over: it is damaged or incomplete ({str(error).splitlines()[0]}).')
            continue
        if meta is not None:
            found.append((meta['iter'], meta['epoch'], str(path)))
    if damaged and not found:
        raise ValueError(
            f'resume: none of the checkpoints of {work_dir} can be read: {[path.name for path in damaged]} are damaged. '
            'Restore one of them, or delete them to start anew.'
        )
    return max(found)[2] if found else None


def last_good(work_dir: str | Path) -> str:
    """The newest whole checkpoint, for messages."""
    try:
        return newest_checkpoint(work_dir) or 'none'
    except ValueError:
        return 'none'


def candidates(work_dir: Path, last: str) -> Iterator[Path]:
    """Checkpoints in the run's folder and in that of the last one."""
    for folder in {work_dir.resolve(), *([Path(last).resolve().parent] if last else [])}:
        yield from sorted(path for path in folder.glob('*.pth') if path.is_file())


def read_meta(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says about itself, without reading its tensors; None if it holds weights only.

    Raises:
        Exception: One of ``UNREADABLE`` if it is damaged; a truncated file always is, its table of contents comes last.
    """
    with torch.serialization.safe_globals(HARMLESS):
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    if not isinstance(checkpoint, dict) or 'optimizer' not in checkpoint:
        return None
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) and {'iter', 'epoch'} <= meta.keys() else None
