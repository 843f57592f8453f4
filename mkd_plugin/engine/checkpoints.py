"""Atomic checkpoints, and the search for the newest complete one to resume from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner

from mkd_plugin.checkpoint.checksum import check_records
from mkd_plugin.checkpoint.read import RUN_FILE, read_description
from mkd_plugin.engine.run_folder import RUN, folder_lost, run_of
from mkd_plugin.engine.shard_files import check_pieces
from mkd_plugin.utils.files import TEMPORARY, move_into_place, remove_path, write_whole

POINTER = 'last_checkpoint'
IN_FLIGHT: set[Future[None]] = set()  # what is being written beside training
UNREADABLE = (OSError, ValueError, BadZipFile)  # what reading a damaged file raises
LONGEST_PATH = 4096
DAMAGED = '.damaged'  # ending of a damaged checkpoint that a resumed run has written again
RESUMED = {'meta': {'epoch', 'iter'}, 'optimizer': set(), 'message_hub': set()}  # what a run needs to go on


def save_atomically(runner: Runner, folder: str | Path, filename: str, **options: Any) -> None:
    """Call ``runner.save_checkpoint`` so that the checkpoint is written completely or not at all.

    Object stores (``s3://…``) are atomic themselves and are written directly. Raises OSError, which names the last good
    checkpoint, if the file cannot be written.
    """
    if '://' in str(folder):
        runner.save_checkpoint(str(folder), filename, **options)
        return

    def write(temporary: Path) -> None:
        runner.save_checkpoint(str(folder), temporary.name, **options)
        barrier()  # some strategies write one part per rank

    with explained(Path(folder, filename), runner.work_dir):
        write_whole_file(Path(folder, filename), write)


def write_whole_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a temporary file, and move it into place once it is complete."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        write(temporary)
        if is_main_process():
            keep_damaged(path)
            move_into_place(temporary, path)
    except OSError:
        remove_path(temporary)
        raise


@contextmanager
def explained(path: str | Path, work_dir: str | Path) -> Iterator[None]:
    """Let an OSError of writing a checkpoint name the last good one, and say how to go on."""
    try:
        yield
    except OSError as error:
        if not Path(work_dir).is_dir():
            raise folder_lost(Path(work_dir)) from error
        raise OSError(
            error.errno,
            f'{path} could not be written ({error.strerror or error}). The last good checkpoint is {last_good(work_dir)}. '
            'Free space or make the folder writable, then start the run again with resume=True',
        ) from error


def write_beside(write: Callable[[], None]) -> Future[None]:
    """Write in a thread of its own, which the interpreter waits for when it exits."""
    pool = ThreadPoolExecutor(1, 'checkpoint')
    future = pool.submit(write)
    pool.shutdown(wait=False)
    IN_FLIGHT.add(future)
    future.add_done_callback(IN_FLIGHT.discard)
    return future


def keep_damaged(path: Path) -> None:
    """Before a resumed run writes a checkpoint again: rename the old one if it is damaged, so that it can be examined."""
    if not path.is_file():
        return
    try:
        check_records(path)
    except UNREADABLE:
        os.replace(path, path.with_name(path.name + DAMAGED))


def check_resumable(checkpoint: Mapping[str, Any], source: str | Path) -> None:
    """Raise ValueError if a checkpoint lacks what a run needs to go on, such as one with weights only."""
    lacks = []
    for name, entries in RESUMED.items():
        value = checkpoint.get(name)
        if not isinstance(value, Mapping):
            lacks.append(name)
        elif absent := sorted(entries - value.keys()):
            lacks.append(f'{" and ".join(absent)} in {name}')
    if lacks:
        held = ', '.join(sorted(map(str, checkpoint))[:10])
        raise ValueError(
            f'{source} cannot be resumed: it has no {", no ".join(lacks)}. Its entries are: {held}. To start a new run from '
            f'its weights: --cfg-options load_from={source}, without --resume.'
        )


def point_to(checkpoint: str, *, work_dir: str | Path) -> None:
    """Write ``last_checkpoint``: a name within the run's folder, so that a copy of the folder points to its own file.

    Addresses (``s3://…``) are written as they are, files of other folders by their absolute path.
    """
    path, folder = Path(checkpoint).absolute(), Path(work_dir).absolute()
    place = path.relative_to(folder) if path.is_relative_to(folder) else path
    write_whole(folder / POINTER, checkpoint if '://' in checkpoint else str(place))


def newest_checkpoint(work_dir: str | Path, *, warn: Callable[[str], Any] = lambda message: None) -> str | None:
    """Find the complete, resumable checkpoint with the highest iteration.

    File names and times are ignored: clocks change, and files are copied.

    Args:
        work_dir: The run's folder. The folder that its ``last_checkpoint`` names is searched as well.
        warn: Called with a message about each file that is damaged or of another run.

    Returns:
        Its path; None if there is no checkpoint.

    Raises:
        ValueError: There are checkpoints, but all are damaged. Starting from scratch would hide that.
    """
    last = _read_pointer(Path(work_dir, POINTER), warn)
    if '://' in last:
        return last
    found, damaged, run = [], [], run_of(Path(work_dir))

    def pass_over(path: Path, error: Exception) -> None:
        damaged.append(path.name)
        reason = (str(error) or repr(error)).splitlines()[0]
        warn(f'{path} is passed over, and kept: it is damaged or incomplete ({reason}).')

    for path in _candidates(Path(work_dir), last):
        try:
            meta = _read_meta(path)
        except UNREADABLE as error:
            pass_over(path, error)
            continue
        if meta is None:
            continue
        if run is not None and meta.get(RUN, run) != run:
            warn(f'{path} is passed over: it is of another run ({meta[RUN]}, not {run}).')
            continue
        found.append((meta['iter'], meta['epoch'], path))
    for *_, path in sorted(found, reverse=True):  # reading a whole file takes long: stop at the first good one
        try:
            check_records(path / RUN_FILE if path.is_dir() else path)
        except UNREADABLE as error:
            pass_over(path, error)
        else:
            return str(path)
    if damaged:
        raise ValueError(
            f'resume: none of the checkpoints of {work_dir} can be read: {sorted(damaged)} are damaged. '
            'Restore one of them, or move them away to start from scratch.'
        )
    return None


def last_good(work_dir: str | Path) -> str:
    """The newest complete checkpoint for a message, or 'none'."""
    wait(list(IN_FLIGHT))
    try:
        return newest_checkpoint(work_dir) or 'none'
    except ValueError:
        return 'none'


def _candidates(work_dir: Path, last: str) -> Iterator[Path]:
    """Checkpoints in the run's folder, and in that of the last one if it was written to another (``out_dir``).

    A pointer to a file of which the folder has its own is that of a copied folder.
    """
    folders = [work_dir.resolve()]
    pointed = Path(work_dir, last).resolve() if last else None
    if pointed is not None and pointed.parent not in folders and not (work_dir / pointed.name).exists():
        folders.append(pointed.parent)
    for folder in folders:
        yield from sorted(folder.glob('*.pth'))


def _read_pointer(pointer: Path, warn: Callable[[str], Any]) -> str:
    """Read ``last_checkpoint``; '' if there is none, or no path in it."""
    text = pointer.read_text(encoding='utf-8', errors='replace').strip() if pointer.is_file() else ''
    if text.isprintable() and '\N{REPLACEMENT CHARACTER}' not in text and len(text) < LONGEST_PATH:
        return text
    warn(f'{pointer} is passed over: it is damaged and holds no path. The checkpoints beside it are searched.')
    return ''


def _read_meta(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint's ``meta`` without its tensors; None if the file holds weights only."""
    if path.is_dir():  # of a sharded run
        check_pieces(path)
        path /= RUN_FILE
    checkpoint = read_description(path)
    if not isinstance(checkpoint, dict) or 'optimizer' not in checkpoint:
        return None
    meta = checkpoint.get('meta')
    counted = isinstance(meta, dict) and all(isinstance(meta.get(name), int) for name in ('iter', 'epoch'))
    return meta if counted else None
