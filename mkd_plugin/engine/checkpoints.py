"""Files that are either whole or not there, and which checkpoint of a folder is the newest whole one."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mkd_plugin.checkpoint.read import HARMLESS, UNREADABLE
from mkd_plugin.engine.exact_data import at_optimizer_step
from mkd_plugin.registry import HOOKS

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


ALLOWED = [name for name in inspect.signature(CheckpointHook.__init__).parameters if name not in ('self', 'kwargs')]


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's hook, made safe.

    * A checkpoint is written beside the old one, flushed to disk and renamed; only then is an old one deleted.
    * Gradients being accumulated are not part of a checkpoint: one that is due amid them is written at the next step of
      the optimiser, under its own name (``epoch_3.pth`` then holds a few iterations of epoch 4).

    Args:
        options: Those of mmengine's ``CheckpointHook``.

    Raises:
        ValueError: It has no such option (it would drop it without a word).
        OSError: A checkpoint cannot be written; the last good one is named, and is still there.
    """

    def __init__(self, **options: Any) -> None:
        unknown = sorted(set(options) - set(ALLOWED))
        if unknown:
            raise ValueError(f'AtomicCheckpointHook has no option {unknown}. It has {ALLOWED}, as CheckpointHook.')
        super().__init__(**options)
        self.postponed: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Delete what a killed run left half written."""
        super().before_train(runner)
        if is_main_process() and '://' not in str(self.out_dir):
            for half in Path(self.out_dir).glob(f'*{HALF}'):
                remove(half)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Write what is due, or was postponed."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.postponed is not None:
            self._save_checkpoint_with_step(runner, self.postponed, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if not at_optimizer_step(runner, meta['iter']):
            self.postponed = step
            return
        kept: list[int] = [*(old for old in getattr(self, 'keep_ckpt_ids', []) if old != step), step]
        if self.max_keep_ckpts > 0:
            # with the one to be deleted: if the run is killed before that, it is deleted when the run is resumed
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        options = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        backend = dict(file_client_args=self.file_client_args, backend_args=self.backend_args)
        # FlexibleRunner takes no position from `meta`: amid an epoch it must be told not to count to its end
        by_epoch = self.by_epoch and meta['epoch'] > runner.epoch
        save_atomically(runner, self.out_dir, name, meta=meta, by_epoch=by_epoch, **options, **backend)
        self.postponed = None
        if is_main_process():
            point_to(self.last_ckpt, work_dir=runner.work_dir)
        if self.max_keep_ckpts > 0:
            self._forget(kept[: -self.max_keep_ckpts])
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)  # a deque that holds max_keep_ckpts

    def _forget(self, steps: list[int]) -> None:
        for step in steps if is_main_process() else []:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(AtomicRunner(runner), metrics)


class AtomicRunner:
    """A runner whose ``save_checkpoint`` is :func:`save_atomically`, for code of the host that calls it."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, **options: Any) -> None:
        """As the runner's."""
        save_atomically(self.runner, out_dir, filename, **options)
