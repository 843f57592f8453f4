"""The folder of a run: which run it belongs to, and that no other one writes to it."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.logging import print_log

from mkd_plugin.checkpoint.report import shorten
from mkd_plugin.engine.run_lock import LOCK, Tell, holds_lock, release_lock, take_lock
from mkd_plugin.engine.run_utils import on_main
from mkd_plugin.utils.files import TEMPORARY, json_dict, write_whole

RUN = 'mkd_run'  # name of the run's id in ``meta`` of a checkpoint and in the message hub
IDENTITY = 'run.json'
# What a new run would overwrite, and a later resume could take for its own.
WRITTEN = (
    'metrics.jsonl', 'last_checkpoint', 'preempted.pth', 'recent.pth', 'epoch_*.pth', 'iter_*.pth', 'stage_*.pth', 'best_*.pth'
)  # fmt: skip
# Files that a killed run leaves half-written: checkpoints, and what utils.files writes.
HALF_WRITTEN = re.compile(
    r'(epoch_\d+|iter_\d+|stage_\d+|preempted|recent|best_.+)\.pth\.tmp'
    r'|\.(metrics(\.dropped)?\.jsonl|last_checkpoint|curves\.png|run\.json)\.\d+\.tmp'
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class RunFolder:
    """A folder that this process, or rank 0 of this run, may write to."""

    path: Path  #: The folder
    run: str  #: Id of the run
    known: bool  #: Whether the folder held files of this run before
    locked: bool = True  #: Whether this process took the lock; False on other ranks

    def check(self) -> None:
        """Raise ValueError if the folder was deleted, or if another process has taken it over."""
        if not self.locked or holds_lock(self.path):
            return
        if (self.path / LOCK).exists():
            raise ValueError(
                f'{self.path}: another process has taken this folder over, so nothing more is written there. '
                'Name another one with --work-dir.'
            )
        if run_of(self.path) != self.run:  # else only the lock was deleted
            raise folder_lost(self.path)

    def continue_from(self, run: str | None, checkpoint: str, *, tell: Tell) -> RunFolder:
        """Continue the run that wrote a checkpoint.

        Raises:
            ValueError: It is another run, and the folder has files of its own.
        """
        if run is None:
            tell(
                f'{checkpoint} names no run: mkd_plugin 0.1.0 wrote it, or a run without ExactResumeHook. Training '
                'continues from it, but not to the same result as without the interruption.'
            )
        elif run != self.run and self.known:
            raise ValueError(
                f'resume: {checkpoint} is a checkpoint of run {run}, but {self.path} holds run {self.run}. Continue that '
                'one with --resume and no file, or name another folder with --work-dir.'
            )
        elif run != self.run:
            if self.locked:
                write_identity(self.path, run)
            return replace(self, run=run)
        return self

    def release(self) -> None:
        """Let other processes write to the folder."""
        release_lock(self.path)


def claim(work_dir: str | Path, *, resume: bool, overwrite: bool = False, tell: Tell = print_log) -> RunFolder:
    """Take a folder for a run, before anything is written to it.

    Calling it again in the same process is allowed and gives the same run.

    Args:
        work_dir: The folder; it is made if it does not exist.
        resume: Continue the run of the folder. Without one, a new run starts.
        overwrite: Rename a folder that holds a run first. Nothing is deleted.
        tell: Called with each line about a stale lock or a renamed folder.

    Raises:
        ValueError: Another process is training there, or the folder holds a run and neither option is set.
    """
    folder = Path(os.path.abspath(work_dir))  # without '..', as mmengine writes it
    folder.mkdir(parents=True, exist_ok=True)
    before = run_of(folder) if resume else None
    run = take_lock(folder, before or uuid.uuid4().hex[:12], tell=tell)
    found = files_of_run(folder)
    if found and not resume:
        release_lock(folder)
        if not overwrite:
            raise ValueError(used(folder, found))
        tell(f'The run that was in {folder} is now in {move_aside(folder)}.')
        return claim(folder, resume=False, tell=tell)
    if run != run_of(folder):
        write_identity(folder, run)
    return RunFolder(folder, run, bool(found) and before is not None)


@contextmanager
def held(work_dir: str | Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold a folder while a run is built and trained; arguments as of :func:`claim`.

    Raises:
        ValueError: As :func:`claim`, on rank 0. Other ranks exit.
        OSError: Nothing more can be written to the folder. The message says why.
    """
    taken: list[RunFolder] = []

    def take() -> None:
        taken.append(
            claim(work_dir, resume=resume, overwrite=overwrite, tell=lambda line: print(line, file=sys.stderr))
        )

    on_main(take)
    try:
        yield
    except OSError as error:
        if not Path(work_dir).is_dir():
            raise folder_lost(Path(work_dir)) from error
        if error.errno in FULL and error.strerror == os.strerror(error.errno):  # not one that was explained already
            raise OSError(
                f'work_dir={work_dir}: nothing more can be written ({error.strerror}), so the run was stopped. Free space '
                'or make the folder writable, then start again with --resume: the last checkpoint is whole.'
            ) from error
        raise
    finally:
        for folder in taken:
            folder.release()


def run_of(folder: Path) -> str | None:
    """Return the id of the run that a folder belongs to; None if nothing says so, as for runs of mkd_plugin 0.1.0."""
    try:
        run = json_dict((folder / IDENTITY).read_bytes()).get('run')
    except OSError:
        return None
    return run if isinstance(run, str) else None


def write_identity(folder: Path, run: str) -> None:
    """Note which run a folder belongs to."""
    began = time.strftime('%Y-%m-%d %H:%M:%S')
    write_whole(folder / IDENTITY, json.dumps(dict(run=run, began=began, command=shlex.join(sys.argv))) + '\n')


def files_of_run(folder: Path) -> list[str]:
    """Names of the files in a folder that a new run would overwrite or mistake for its own."""
    return [
        path.name
        for pattern in WRITTEN
        for path in sorted(folder.glob(pattern))
        if path.is_dir() or path.stat().st_size
    ]


def check_unused(work_dir: str | Path) -> None:
    """Raise ValueError, on every rank, if a new run would overwrite another; nothing is written."""

    def check() -> None:
        folder = Path(os.path.abspath(work_dir))
        found = files_of_run(folder)
        if found and not (folder / LOCK).exists():  # a lock is judged when the folder is claimed
            raise ValueError(used(folder, found))

    on_main(check)


def used(folder: Path, found: list[str]) -> str:
    """Say why a run cannot start in a folder, and what to do."""
    return (
        f'work_dir={folder} holds a run already ({shorten(found, 3)}), which a new one would overwrite. To continue '
        'it, add --resume (resume=True). To start anew, name another folder with --work-dir, or add --overwrite to '
        '`mkd train`, which renames this one first.'
    )


def move_aside(folder: Path) -> Path:
    """Rename a folder to ``<name>.old-<time>``; return the new path."""
    wanted = f'{folder.name}.old-{time.strftime("%Y%m%d-%H%M%S")}'
    names = [wanted, *(f'{wanted}-{number}' for number in range(2, 1000))]
    aside = next(path for name in names if not (path := folder.with_name(name)).exists())
    os.rename(folder, aside)
    return aside


def folder_lost(folder: Path) -> ValueError:
    """The error of a run whose folder was deleted."""
    return ValueError(
        f'work_dir={folder} was deleted or moved while the run was writing to it, so the run was stopped and nothing was '
        'written in its place. If it was moved, move it back and start again with --resume; if not, the run is lost.'
    )


def is_half_written(name: str, template: str) -> bool:
    """Whether a file is a temporary one of ours; ``template`` is that of the checkpoints' names, as ``epoch_{}.pth``."""
    own = re.escape(template).replace(r'\{\}', r'\d+') + re.escape(TEMPORARY)
    return bool(HALF_WRITTEN.fullmatch(name) or re.fullmatch(own, name))


def resume_command() -> str | None:
    """The command that continues this run; None if it was not started by a training script.

    The launchers of ``tools/`` put theirs into ``MKD_COMMAND``.
    """
    given = os.environ.get('MKD_COMMAND')
    words = shlex.split(given) if given else list(sys.argv)
    name = Path(words[0]).name
    if not given:
        if name not in ('mkd', 'train.py', 'pretrain.py'):
            return None
        words = ['mkd', *words[1:]] if name == 'mkd' else ['python', *words]
    kept: list[str] = []
    for before, word in zip(['', *words], words, strict=False):
        is_file = _is_option(before, '--resume') and not word.startswith('-')
        if not is_file and not _is_option(word.partition('=')[0], '--overwrite', '--resume'):
            kept.append(word)
    return shlex.join([*kept, '--resume'])


def _is_option(word: str, *options: str) -> bool:
    """Whether a word is one of the options, or an abbreviation of one that argparse accepts."""
    return len(word) > 3 and any(option.startswith(word) for option in options)
