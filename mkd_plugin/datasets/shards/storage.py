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
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import fsspec
from mmengine.logging import print_log

from mkd_plugin.utils.files import TEMPORARY, lock_file

BLOCK_BYTES = 8 << 20  # read from the storage at once
FOLDER, GIGABYTES = 'MKD_CACHE_DIR', 'MKD_CACHE_GB'  # environment variables: a machine's disk is no property of a run
LOCKS = 64  # blocks that the processes of a node may load at the same time
# Keys of fsspec's file info whose values change when the file does.
STAMPS = ('ETag', 'etag', 'md5Hash', 'LastModified', 'last_modified', 'updated', 'mtime', 'created')
T = TypeVar('T')


class StorageError(ValueError):
    """The storage does not answer, or what it has was changed. Unlike an unreadable image, it stops the run."""


def ask(url: str, question: Callable[[Any, str], T]) -> T:
    """Call ``question`` with the file system of an address and the path in it. Raises StorageError, FileNotFoundError."""
    try:
        return question(*fsspec.core.url_to_fs(url))
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise StorageError(f'{url}: the driver of this protocol is not installed. {str(error).rstrip(".")}.') from error
    except Exception as error:  # drivers raise exceptions of their own libraries
        reason = str(error).rstrip('.') or type(error).__name__
        raise StorageError(
            f'{url} cannot be read: {reason}. Check the address, its permissions and the network.'
        ) from error


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder on storage, with the methods of ``pathlib.Path`` that reading shards needs."""

    url: str
    info: dict[str, Any] = field(default_factory=dict, compare=False)  #: What a listing said about it

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rpartition('/')[2]

    def with_name(self, name: str) -> Remote:
        """Its neighbour of this name."""
        return Remote(f'{self.url.rpartition("/")[0]}/{name}')

    @property
    def version(self) -> str:
        """Eight digits that change with the content, as far as the listing tells."""
        stamps = [str(self.info.get(key)) for key in STAMPS]
        return hashlib.blake2b(repr(stamps).encode(), digest_size=4).hexdigest()

    def stat(self) -> Any:
        """Its size in bytes; times say when a file was uploaded."""
        size = self.info.get('size')
        size = ask(self.url, lambda system, path: system.size(path)) if size is None else size
        return SimpleNamespace(st_size=size, st_mtime_ns=0)

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return ask(self.url, lambda system, path: bool(system.isdir(path)))

    def is_file(self) -> bool:
        """Whether it is a file."""
        return ask(self.url, lambda system, path: bool(system.isfile(path)))

    exists = is_file

    def open(self, mode: str) -> Any:
        """Open it for reading."""
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
        """Return the files that match, in no order."""

        def found(system: Any, path: str) -> list[Remote]:
            infos = system.glob(f'{path.rstrip("/")}/{pattern}', detail=True)
            return [Remote(system.unstrip_protocol(name), info) for name, info in infos.items()]

        return ask(self.url, found)


def place_of(path: str) -> Path | Remote:
    """A path of this machine, or an address of a storage."""
    return Remote(path) if '://' in path else Path(path)


def version_of(file: Path | Remote) -> str:
    """Text that changes when a file is written."""
    return file.version if isinstance(file, Remote) else str(file.stat().st_mtime_ns)


def cache_folder() -> Path:
    """The folder of this node for lists and blocks; created, and closed to other users."""
    folder = Path(os.environ.get(FOLDER) or f'{tempfile.gettempdir()}/mkd_plugin-{os.getuid()}')
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class BlockCache:
    """Blocks of remote files on the node's disk, shared by its processes; the least recently used ones go first.

    The folder and its bytes are set by the environment variables MKD_CACHE_DIR and MKD_CACHE_GB (20; 0 reads without it). A
    block appears under its name only when it is whole. If the disk fills, a warning says so once, and reading goes on without.
    """

    def __init__(self) -> None:
        try:
            self.most = int(float(os.environ.get(GIGABYTES, '20')) * 1e9)
        except (ValueError, OverflowError) as error:
            raise StorageError(f'{GIGABYTES}={os.environ[GIGABYTES]}: give a number, such as 20.') from error
        self.folder: Path | None = None
        if self.most >= BLOCK_BYTES:
            with self._guard():
                self.folder = cache_folder()

    def read(self, file: Remote, version: str, start: int, end: int, *, anew: bool = False) -> bytes:
        """Read the bytes of a file from ``start`` to before ``end``; ``anew`` loads their blocks again."""
        edges = [start, *range(start // BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES, end, BLOCK_BYTES), end]
        return b''.join(self._part(file, version, *pair, anew) for pair in zip(edges, edges[1:], strict=False))

    def _part(self, file: Remote, version: str, start: int, end: int, anew: bool) -> bytes:
        """Bytes within one block, from the disk if it is there."""
        number = start // BLOCK_BYTES
        offset, key = number * BLOCK_BYTES, hashlib.blake2b(f'{file} {version}'.encode(), digest_size=16).hexdigest()
        begin, stop = start - offset, end - offset
        with self._guard():
            if self.folder is not None:
                path = self.folder / f'{key}-{number}.block'
                if anew:
                    path.unlink(missing_ok=True)
                with suppress(FileNotFoundError):
                    return _read(path, begin, stop)
                with lock_file(self.folder / f'{(int(key, 16) + number) % LOCKS}.lock', wait=True):
                    with suppress(FileNotFoundError):  # another process has loaded it meanwhile
                        return _read(path, begin, stop)
                    content = file.read_range(offset, offset + BLOCK_BYTES)
                    with self._guard():
                        self._keep(path, content)
                    return content[begin:stop]
        return file.read_range(start, end)

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
        with lock_file(path.with_name('write.lock'), wait=True):
            _evict(path.parent, self.most - len(content))
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


def _evict(folder: Path, most: int) -> None:
    """Delete the blocks that were used least recently until those that stay have ``most`` bytes."""
    for half in folder.glob(f'*.block{TEMPORARY}'):  # left by a killed process: only the holder of the lock writes
        half.unlink(missing_ok=True)
    blocks = []
    for path in folder.glob('*.block'):
        with suppress(FileNotFoundError):  # a process deletes blocks that do not fit their file
            blocks.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in blocks)
    for _, size, path in sorted(blocks):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size
