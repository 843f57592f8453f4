"""Atomic checkpoints, and the search for the newest complete one to resume from."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mkd_plugin.checkpoint.checksum import check_records
from mkd_plugin.checkpoint.read import RUN_FILE, read_description
from mkd_plugin.engine.run_folder import RUN, is_half_written, run_of
from mkd_plugin.engine.run_utils import at_optimizer_step
from mkd_plugin.engine.shard_files import check_pieces
from mkd_plugin.registry import HOOKS
from mkd_plugin.utils.files import TEMPORARY, move_into_place, remove_path, write_whole

POINTER = 'last_checkpoint'
UNREADABLE = (OSError, ValueError, BadZipFile)  # what reading a damaged file raises
LONGEST_PATH = 4096
DAMAGED = '.damaged'  # ending of a damaged checkpoint that a resumed run has written again
RESUMED = {'meta': {'epoch', 'iter'}, 'optimizer': set(), 'message_hub': set()}  # what a run needs to go on
ALLOWED = [name for name in inspect.signature(CheckpointHook.__init__).parameters if name not in ('self', 'kwargs')]


def save_atomically(runner: Runner, folder: str | Path, filename: str, **options: Any) -> None:
    """Call ``runner.save_checkpoint`` so that the checkpoint is written completely or not at all.

    Object stores (``s3://…``) are atomic themselves and are written directly. Raises OSError, which names the last good
    checkpoint, if the file cannot be written.
    """
    if '://' in str(folder):
        runner.save_checkpoint(str(folder), filename, **options)
        return
    path, temporary = Path(folder, filename), Path(folder, filename + TEMPORARY)
    try:
        runner.save_checkpoint(str(folder), temporary.name, **options)
        barrier()  # some strategies write one part per rank
        if is_main_process():
            keep_damaged(path)
            move_into_place(temporary, path)
    except OSError as error:
        remove_path(temporary)
        raise OSError(
            error.errno,
            f'{path} could not be written ({error.strerror or error}). The last good checkpoint is '
            f'{last_good(runner.work_dir)}. Free space or make the folder writable, then start the run again '
            'with resume=True',
        ) from error


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

    Addresses (``s3://…``) and files of other folders are written as they are.
    """
    path, folder = Path(checkpoint).absolute(), Path(work_dir).absolute()
    inside = '://' not in checkpoint and path.is_relative_to(folder)
    write_whole(folder / POINTER, str(path.relative_to(folder)) if inside else checkpoint)


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


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with atomic writes.

    * A checkpoint is written to a temporary file, flushed to disk and renamed; only then is an old one deleted.
    * A checkpoint does not contain accumulated gradients. One that is due between two optimiser steps is written at the
      next step, under its own name (``epoch_3.pth`` then includes a few iterations of epoch 4).

    Args:
        options: Those of mmengine's ``CheckpointHook``.

    Raises:
        ValueError: An option is unknown (mmengine's hook ignores it silently).
        OSError: A checkpoint cannot be written. The message names the last good one, which is kept.
    """

    def __init__(self, **options: Any) -> None:
        unknown = sorted(set(options) - set(ALLOWED))
        if unknown:
            raise ValueError(f'AtomicCheckpointHook has no option {unknown}. It has {ALLOWED}, as CheckpointHook.')
        super().__init__(**options)
        self.postponed: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Delete the temporary files of a killed run, and no others."""
        super().before_train(runner)
        if is_main_process():
            for folder in {str(self.out_dir), runner.work_dir}:
                for temporary in Path(folder).glob(f'*{TEMPORARY}') if '://' not in folder else ():
                    if is_half_written(temporary.name, self.filename_tmpl):
                        remove_path(temporary)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Write a checkpoint that is due or was postponed."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.postponed is not None:
            self._save_checkpoint_with_step(runner, self.postponed, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if not at_optimizer_step(runner, meta['iter']):
            self.postponed = step
            return
        kept: list[int] = [*(old for old in getattr(self, 'keep_ckpt_ids', []) if old != step), step]
        if self.max_keep_ckpts > 0:
            # includes the one to be deleted: if the run is killed before that, the resumed run deletes it
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        options = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler)
        backend = dict(file_client_args=self.file_client_args, backend_args=self.backend_args)
        # FlexibleRunner ignores the position in `meta`: within an epoch, by_epoch=True would count the epoch as complete
        by_epoch = self.by_epoch and meta['epoch'] > runner.epoch
        save_atomically(runner, self.out_dir, name, meta=meta, by_epoch=by_epoch, **options, **backend)
        self.postponed = None
        if is_main_process():
            point_to(self.last_ckpt, work_dir=runner.work_dir)
        if self.max_keep_ckpts > 0:
            self._forget(kept[: -self.max_keep_ckpts])
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)  # a deque of length max_keep_ckpts

    def _forget(self, steps: list[int]) -> None:
        """Delete the checkpoints of these steps."""
        for step in steps if is_main_process() else []:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(AtomicRunner(runner), metrics)


class AtomicRunner:
    """A runner whose ``save_checkpoint`` is :func:`save_atomically`, to pass to mmengine's own code."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, **options: Any) -> None:
        """Save atomically; arguments as the runner's."""
        save_atomically(self.runner, out_dir, filename, **options)
