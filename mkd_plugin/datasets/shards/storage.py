"""Files on object storage, read through fsspec, and the blocks of them that a node keeps on its disk.

fsspec comes with torch. A protocol may need a driver, such as s3fs for ``s3://``, which also finds the credentials.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, TypeVar

import fsspec
from mmengine.logging import print_log

from mkd_plugin.utils.files import TEMPORARY, lock_file

BLOCK_BYTES = 8 << 20  # read from the storage at once
FOLDER, GIGABYTES = 'MKD_CACHE_DIR', 'MKD_CACHE_GB'  # environment variables: a machine's disk is no property of a run
LOCKS = 64  # blocks that the processes of a node may load at the same time
STAMPS = (
    'ETag',
    'etag',
    'md5Hash',
    'LastModified',
    'last_modified',
    'updated',
    'mtime',
    'created',
)  # in fsspec's infos
T = TypeVar('T')


class StorageError(ValueError):
    """The storage does not answer, or what it has was changed. Unlike an unreadable image, it stops the run."""


def ask(url: str, question: Callable[[Any, str], T]) -> T:
    """Call ``question`` with the file system of an address and the path in it.

    Raises StorageError if the protocol has no driver, access is denied, or the storage fails; FileNotFoundError.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
        return question(system, path)
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise StorageError(f'{url}: the driver of this protocol is not installed. {str(error).rstrip(".")}.') from error
    except Exception as error:  # drivers raise exceptions of their own libraries
        reason = str(error).rstrip('.') or type(error).__name__
        raise StorageError(
            f'{url} cannot be read: {reason}. Check the address, its permissions and the network.'
        ) from error


@dataclass(frozen=True)
class Remote:
    """A file or folder on storage, with the methods of ``pathlib.Path`` that reading shards needs."""

    url: str
    info: dict[str, Any] = field(default_factory=dict, compare=False)  #: What a listing said about it

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        return Remote(f'{self.url.rstrip("/")}/{name}')

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rstrip('/').rpartition('/')[2]

    def with_name(self, name: str) -> Remote:
        """Its neighbour of this name."""
        return Remote(f'{self.url.rstrip("/").rpartition("/")[0]}/{name}')

    @cached_property
    def version(self) -> str:
        """Eight digits that differ from those of other contents, as far as the storage tells them apart."""
        info = self.info or ask(self.url, lambda system, path: system.info(path))
        stamps = [info.get('size'), *(str(info[key]) for key in STAMPS if info.get(key))]
        return hashlib.blake2b(repr(stamps).encode(), digest_size=4).hexdigest()

    def stat(self) -> Any:
        """Its size in bytes."""
        size = self.info.get('size')
        return SimpleNamespace(st_size=ask(self.url, lambda system, path: system.size(path)) if size is None else size)

    def is_dir(self) -> bool:
        """Whether it is a folder, or the storage has none."""
        return ask(self.url, lambda system, path: bool(system.isdir(path)))

    def is_file(self) -> bool:
        """Whether it is a file."""
        return ask(self.url, lambda system, path: bool(system.isfile(path)))

    exists = is_file

    def open(self, mode: str) -> Any:
        """Open it for reading; what is read ahead is kept in memory."""
        return ask(self.url, lambda system, path: system.open(path, mode, block_size=BLOCK_BYTES))

    def read_text(self) -> str:
        """Read it as UTF-8."""
        return ask(self.url, lambda system, path: str(system.cat_file(path), 'utf-8'))

    def read_range(self, start: int, end: int) -> bytes:
        """Read the bytes from ``start`` to before ``end``, or to the end of the file. Raises StorageError."""
        try:
            return ask(self.url, lambda system, path: bytes(system.cat_file(path, start, end)))
        except FileNotFoundError as error:
            raise StorageError(
                f'{self.url} is missing: it was there when the run began. Restore it, and resume.'
            ) from error

    def glob(self, pattern: str) -> list[Remote]:
        """Return the files that match, with their infos, in no order."""

        def found(system: Any, path: str) -> list[Remote]:
            infos = system.glob(f'{path.rstrip("/")}/{pattern}', detail=True)
            return [Remote(system.unstrip_protocol(name), info) for name, info in infos.items()]

        return ask(self.url, found)

    def iterdir(self) -> list[Remote]:
        """Return the files in the folder."""
        return self.glob('*')

    def relative_to(self, folder: Remote) -> PurePosixPath:
        """Its path below a folder."""
        return PurePosixPath(
            self.url[len(ask(folder.url, lambda system, path: system.unstrip_protocol(path))) :].strip('/')
        )


def place_of(path: str) -> Path | Remote:
    """A path of this machine, or an address of a storage."""
    return Remote(path) if '://' in path else Path(path)


def version_of(file: Path | Remote) -> str:
    """Text that changes when a file is written."""
    return file.version if isinstance(file, Remote) else str(file.stat().st_mtime_ns)


def cache_folder() -> Path:
    """The folder of this node for indexes and blocks; created, and closed to other users."""
    folder = os.environ.get(FOLDER) or Path(tempfile.gettempdir(), f'mkd_plugin-{os.getuid()}')
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(folder)


class BlockCache:
    """Blocks of remote files on the node's disk, shared by its processes; the least recently used ones go first.

    The folder and its bytes are set by the environment variables MKD_CACHE_DIR and MKD_CACHE_GB (20; 0 reads without it). A
    block appears under its name only when it is whole. If the disk fills, a warning says so once, and reading goes on without.
    """

    def __init__(self) -> None:
        try:
            self.most = int(float(os.environ.get(GIGABYTES, '20')) * 1e9)
        except ValueError as error:
            raise StorageError(f'{GIGABYTES}={os.environ[GIGABYTES]}: give a number, such as 20.') from error
        self.folder: Path | None = None
        if self.most >= BLOCK_BYTES:
            with self._guard():
                self.folder = cache_folder()

    def read(self, file: Remote, version: str, start: int, end: int, *, anew: bool = False) -> bytes:
        """Read the bytes of a file from ``start`` to before ``end``; ``anew`` deletes the blocks that are there."""
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        parts = []
        for number in range(first, last + 1):
            begin = max(start - number * BLOCK_BYTES, 0)
            parts.append(self._part(file, version, number, begin, min(end - number * BLOCK_BYTES, BLOCK_BYTES), anew))
        return b''.join(parts)

    def _part(self, file: Remote, version: str, number: int, begin: int, end: int, anew: bool) -> bytes:
        """Bytes of one block, from the disk if it is there."""
        offset, key = number * BLOCK_BYTES, hashlib.blake2b(f'{file} {version}'.encode(), digest_size=16).hexdigest()
        with self._guard():
            if self.folder is not None:
                path = self.folder / f'{key}-{number}.block'
                if anew:
                    path.unlink(missing_ok=True)
                with suppress(FileNotFoundError):
                    return _read(path, begin, end)
                with lock_file(self.folder / f'{(int(key, 16) + number) % LOCKS}.lock', wait=True):
                    with suppress(FileNotFoundError):  # another process has loaded it meanwhile
                        return _read(path, begin, end)
                    content = file.read_range(offset, offset + BLOCK_BYTES)
                    with self._guard():
                        self._keep(path, content)
                    return content[begin:end]
        return file.read_range(offset + begin, offset + end)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Go on without the cache if its disk fails."""
        try:
            yield
        except OSError as error:
            self.folder = None
            print_log(
                f'The cache cannot be used ({error}): every image is read from the storage on its own, which is slow. Free '
                f'space there, or set {FOLDER} to another folder, or {GIGABYTES} to what there is.',
                'current',
                level=logging.WARNING,
            )

    def _keep(self, path: Path, content: bytes) -> None:
        """Write a block, after making room for it."""
        with lock_file(path.with_name('used'), wait=True) as handle:
            assert handle is not None  # it waited
            counted = os.pread(handle, 20, 0)
            total = len(content) + (int(counted) if counted.isdigit() else self.most)
            if total > self.most:
                total = len(content) + _evict(path.parent, int(0.9 * self.most) - len(content))
            os.pwrite(
                handle, b'%020d' % total, 0
            )  # before the block: a killed process may count too much, never too little
            half = path.with_name(path.name + TEMPORARY)
            try:
                half.write_bytes(content)
                os.replace(half, path)
            except BaseException:
                half.unlink(missing_ok=True)
                raise


def _read(path: Path, begin: int, end: int) -> bytes:
    """Read a part of a block, and mark the block as used. Raises FileNotFoundError."""
    with path.open('rb') as file:
        os.utime(file.fileno())
        return os.pread(file.fileno(), end - begin, begin)


def _evict(folder: Path, most: int) -> int:
    """Delete the blocks that were used least recently, and return the bytes of those that stay, at most ``most``."""
    for half in folder.glob(f'*.block{TEMPORARY}'):  # left by a killed process: only the holder of the lock writes
        half.unlink(missing_ok=True)
    blocks = []
    for path in folder.glob('*.block'):
        with suppress(FileNotFoundError):  # a process may delete a block that does not fit its file
            status = path.stat()
            blocks.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in blocks)
    for _, size, path in sorted(blocks):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total
