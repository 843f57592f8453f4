"""Members of tar files: an index of their positions, kept beside the tar, and random access to their contents.

A member's address is ``tar://FILE.tar@OFFSET+SIZE/NAME``, which every loader of the hosts can read. For a file on storage,
FILE is ``s3%3A//bucket/a.tar?VERSION``, because mmengine splits addresses at ``://``.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.fileio import BaseStorageBackend, register_backend

from mkd_plugin.datasets.shards.storage import BlockCache, Remote, StorageError
from mkd_plugin.utils.files import write_whole

FORMAT = 1  # of the index file
BLOCK = 512
LARGEST_LABEL = 1 << 20  # bytes; larger .cls and .json files are ignored
PREFIX, REMOTE = 'tar://', '%3A//'  # the second replaces :// in the address of a storage; no path has it
ADDRESS = re.compile(PREFIX + r'(.+)@(\d+)\+(\d+)/[^@]*', re.DOTALL)  # folders may be called a.tar@1+2
MOST_OPEN = 256  # files kept open; most systems allow 1024 per process
LARGEST_HEADER = 1 << 20  # bytes of names and attributes before a member; longer ones are no names
File = Path | Remote
COMPRESSORS = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ\x00': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}


@dataclass
class ShardIndex:
    """Contents of a tar file."""

    size: int  #: Bytes of the tar file when it was scanned
    mtime_ns: int  #: Its modification time then
    #: (name, offset of the content, its size) of every regular file, in the tar's order
    members: list[tuple[str, int, int]] = field(default_factory=list)
    #: Key → class number, from ``.cls`` files that hold a number, and from ``.json`` files that hold a number or an
    #: object with one as ``label`` or ``cls``
    labels: dict[str, int] = field(default_factory=dict)


def index_path(tar: File) -> File:
    """Path of a tar's index file."""
    return tar.with_name(tar.name + '.index.json')


def key_of(name: str) -> str:
    """WebDataset's key of a member: its path up to the first dot of the file name."""
    folder, slash, file = name.rpartition('/')
    return folder + slash + file.split('.', 1)[0]


def read_index(tar: File) -> ShardIndex | None:
    """Read a tar's index; None if there is no valid one, or if the tar has changed since.

    On storage times say when a file was uploaded: there the size has to match, and every member that is read its header.
    """
    status, path = tar.stat(), index_path(tar)
    try:
        # a member takes a block of the tar, and fewer bytes of the index even if its name is escaped
        if isinstance(path, Path) and (not path.is_file() or path.stat().st_size > 4 * status.st_size + LARGEST_LABEL):
            return None
        stored = json.loads(path.read_text())
        if stored.pop('format') != FORMAT:
            return None
        stored['members'] = [(str(name), int(offset), int(size)) for name, offset, size in stored['members']]
        stored['labels'] = {str(key): int(label) for key, label in stored['labels'].items()}
        index = ShardIndex(**stored)
    except (OSError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None  # missing, or not written by us: scan the tar
    fits = all(
        BLOCK <= offset <= offset + size <= status.st_size and not offset % BLOCK for _, offset, size in index.members
    )
    same = isinstance(tar, Remote) or index.mtime_ns == status.st_mtime_ns
    return index if fits and same and index.size == status.st_size else None


def write_index(tar: Path, index: ShardIndex) -> None:
    """Write a tar's index atomically. Raises OSError if the folder is read-only, or the disk is full."""
    write_whole(Path(str(index_path(tar))), json.dumps({'format': FORMAT, **asdict(index)}))


def scan(tar: File, *, progress: Callable[[int], Any] = lambda advance: None) -> ShardIndex:
    """Read all headers of a tar file; ``progress`` gets the number of bytes done since its last call.

    Links, folders and devices are skipped. Of two members with the same name the later one counts, as when unpacking.
    Raises ValueError if the file is no tar file, or is compressed, damaged or truncated, OSError if it cannot be opened.
    """
    if tar.exists() and not tar.is_file():
        raise ValueError(f'{tar} is no tar file, but a folder, pipe or device. Move it away, or change shards.')
    status = tar.stat()
    index = ShardIndex(status.st_size, status.st_mtime_ns)
    found: dict[str, tuple[str, int, int]] = {}
    reported = 0
    with tar.open('rb') as file:
        try:
            for number, (name, offset, size) in enumerate(_regular_members(file, status.st_size)):
                found.pop(name, None)  # the later member takes a later place
                found[name] = (name, offset, size)
                if name.lower().endswith(('.cls', '.json')) and size <= LARGEST_LABEL:
                    file.seek(offset)
                    label = _parse_label(file.read(size))
                    if label is not None:
                        index.labels[key_of(name)] = label
                if number % 256 == 0:
                    progress(offset - reported)
                    reported = offset
        # Python's reader raises these on arbitrary bytes, RecursionError on a chain of extended headers
        except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise ValueError(f'{tar} is no whole tar file: {error}.{_advice(tar)}') from error
    progress(status.st_size - reported)
    index.members = list(found.values())
    return index


class Headers:
    """An open file of which tarfile may read headers, but not hundreds of megabytes that one claims to have."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """Read some bytes."""
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f'a header claims to have {size:,} bytes')
        content: bytes = self._read(size)
        return content


def _regular_members(file: Any, total: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every regular file of an open tar."""
    reached = -1
    headers: Any = Headers(file)
    with tarfile.open(fileobj=headers, mode='r:') as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # do not keep a million headers in memory
            end = member.offset_data + member.size
            if member.size < 0 or member.offset <= reached or end > total:  # the reader would loop for ever
                raise tarfile.ReadError(
                    f'the member {member.name!r} claims {member.size} bytes at {member.offset_data}'
                )
            reached = member.offset
            if member.issparse():
                raise tarfile.ReadError(f'{member.name!r} is stored as a sparse file: pack it without --sparse')
            if member.isreg():
                yield member.name, member.offset_data, member.size
        file.seek(archive.offset)
        mark = file.read(BLOCK)
        if len(mark) < BLOCK:
            raise tarfile.ReadError(f'it ends after {total:,} bytes without the mark that closes a tar')
        if any(mark):
            raise tarfile.ReadError(f'what is at byte {archive.offset:,} is no header of a member')


def _advice(tar: File) -> str:
    """How to fix a file that is no tar."""
    with tar.open('rb') as file:
        start = file.read(6)
    for magic, name in COMPRESSORS.items():
        if start.startswith(magic):
            return f' It is compressed with {name}: unpack it ({name} -dc {tar.name} > NEW.tar), images hardly get smaller.'
    return ' Copy it or make it again.'


def _parse_label(content: bytes) -> int | None:
    """Class number in a ``.cls`` or ``.json`` file; None if there is none."""
    try:
        return int(content)
    except ValueError:
        pass
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = value.get('label', value.get('cls')) if isinstance(value, dict) else None
    return label if isinstance(label, int) and not isinstance(label, bool) else None


def member_uri(tar: str | Path | Remote, name: str, offset: int, size: int) -> str:
    """Address of a member; the name only serves messages."""
    name = name.replace('://', ':/').replace('@', '%40')  # mmengine splits at ://, and the last @ precedes the offset
    tar = f'{tar.url.replace("://", REMOTE)}?{tar.version}' if isinstance(tar, Remote) else tar
    return f'{PREFIX}{tar}@{offset}+{size}/{name}'


def parse_uri(uri: str) -> tuple[str, int, int]:
    """(tar file, offset, size) of an address. Raises ValueError if it is no address of a member."""
    found = ADDRESS.fullmatch(uri)
    if found is None:
        raise ValueError(f'{uri}: the address of a member is tar://FILE.tar@OFFSET+SIZE/NAME; ShardDataset makes them.')
    return found[1], int(found[2]), int(found[3])


class TarMemberBackend(BaseStorageBackend):
    """mmengine's storage backend for ``tar://…``.

    Worker processes may share the descriptors that they inherit, because ``os.pread`` does not move a position.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self._cache: BlockCache | None = None

    def get(self, filepath: str | Path) -> bytes:
        """Read a member. Raises OSError if the tar file does not exist, or ends before the member does; StorageError."""
        tar, offset, size = parse_uri(str(filepath))
        if REMOTE in tar:
            return self._get_remote(tar.replace(REMOTE, '://', 1), offset, size)
        descriptor = self._descriptor(tar)
        content = os.pread(descriptor, size, offset)
        while len(content) < size:  # a network file system may return less
            more = os.pread(descriptor, size - len(content), offset + len(content))
            if not more:
                raise OSError(f'{tar} ends before byte {offset + size:,}: it was cut off after it was indexed')
            content += more
        return content

    def _get_remote(self, tar: str, offset: int, size: int) -> bytes:
        """Read a member with its header, which tells whether it is still the one that was indexed."""
        self._cache = self._cache or BlockCache()
        url, _, version = tar.rpartition('?')
        for anew in (False, True):  # a block may be damaged by a loss of power
            content = self._cache.read(Remote(url), version, offset - BLOCK, offset + size, anew=anew)
            if len(content) == BLOCK + size and content[124:136].strip(b'\0 ').lstrip(b'0') == b'%o' % size:
                return content[BLOCK:]
        raise StorageError(
            f'{url} was changed after it was indexed: there is no image of {size:,} bytes at {offset:,}.'
        )

    def get_text(self, filepath: str | Path, encoding: str = 'utf-8') -> str:
        """Read a member as text."""
        return self.get(filepath).decode(encoding)

    def _descriptor(self, tar: str) -> int:
        """Open a tar file unless it is open, and close the least recently used one if too many are."""
        if tar in self._open:
            self._open.move_to_end(tar)
            return self._open[tar]
        descriptor = os.open(tar, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))
        self._open[tar] = descriptor
        if len(self._open) > MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor


register_backend('mkd_tar', TarMemberBackend, prefixes='tar', force=True)
