"""Where the members of a tar file are: its headers are read once, and what they say is kept in a file beside it."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
BLOCK = 512
LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json file that is looked at


@dataclass
class ShardIndex:
    """What a tar file holds.

    Attributes:
        size: Of the tar file in bytes, when it was scanned.
        mtime_ns: Its time of change, likewise.
        members: (name, offset of the content, its size) of every ordinary file, in the tar's order.
        labels: Key → class number, of every ``.cls`` file with a number, and of ``.json`` files that are one or have one as
            ``label`` or ``cls``.
    """

    size: int
    mtime_ns: int
    members: list[tuple[str, int, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def index_path(tar: Path) -> Path:
    """The file with a tar's index."""
    return tar.with_name(tar.name + '.index.json')


def key_of(name: str) -> str:
    """WebDataset's key of a member: its path up to the first point of its file name."""
    folder, slash, file = name.rpartition('/')
    return folder + slash + file.split('.', 1)[0]


def read_index(tar: Path) -> ShardIndex | None:
    """The index beside a tar file; None if there is none, or if the tar has changed since.

    Raises:
        OSError: The tar file is not there.
    """
    status = tar.stat()
    try:
        stored = json.loads(index_path(tar).read_text())
        if stored.pop('format') != FORMAT:
            return None
        stored['members'] = [(str(name), int(offset), int(size)) for name, offset, size in stored['members']]
        stored['labels'] = {str(key): int(label) for key, label in stored['labels'].items()}
        index = ShardIndex(**stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # not there, or not written by us: the tar itself knows
    fits = all(0 <= offset <= offset + size <= status.st_size for _, offset, size in index.members)
    return index if fits and (index.size, index.mtime_ns) == (status.st_size, status.st_mtime_ns) else None


def write_index(tar: Path, index: ShardIndex) -> None:
    """Keep an index beside its tar file; the whole file appears at once.

    Raises:
        OSError: The folder is read-only, or the disk full.
    """
    whole = index_path(tar)
    half = whole.with_name(f'.{whole.name}.{os.getpid()}.tmp')  # several processes of a run may scan the same tar
    try:
        half.write_text(json.dumps({'format': FORMAT, **asdict(index)}))
        os.replace(half, whole)  # not flushed: what a power cut leaves of it is not taken for an index
    except OSError:
        with suppress(OSError):
            half.unlink()
        raise


def scan(tar: Path, *, progress: Callable[[int], Any] = lambda place: None) -> ShardIndex:
    """Read all headers of a tar file.

    Links, folders and devices are passed over. Of two members of one name the later counts, as when a tar is unpacked.

    Args:
        tar: The file.
        progress: Told from time to time how many more bytes are done.

    Raises:
        ValueError: It is no tar file, compressed, damaged or cut off.
        OSError: It cannot be opened.
    """
    status = tar.stat()
    index = ShardIndex(status.st_size, status.st_mtime_ns)
    found: dict[str, tuple[str, int, int]] = {}
    told = 0
    with tar.open('rb') as file:
        try:
            for number, (name, offset, size) in enumerate(members_of(file, status.st_size)):
                found.pop(name, None)
                found[name] = (name, offset, size)
                if name.lower().endswith(('.cls', '.json')) and size <= LARGEST_LABEL:
                    label = label_in(os.pread(file.fileno(), size, offset))
                    if label is not None:
                        index.labels[key_of(name)] = label
                if number % 256 == 0:
                    progress(offset - told)
                    told = offset
        # what Python's reader raises on nonsense; a chain of extended headers ends in the last of them
        except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise ValueError(f'{tar} is no whole tar file: {error}.{advice(tar)}') from error
    progress(status.st_size - told)
    index.members = list(found.values())
    return index


def members_of(file: Any, total: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every ordinary file of an open tar.

    Raises:
        tarfile.TarError: It is damaged or cut off; Python's reader takes both for the end.
    """
    reached = -1
    with tarfile.open(fileobj=file, mode='r:') as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or a million headers stay in memory
            end = member.offset_data + member.size
            if member.size < 0 or member.offset <= reached or end > total:  # would send the reader in a circle
                raise tarfile.ReadError(
                    f'the member {member.name!r} claims {member.size} bytes at {member.offset_data}'
                )
            reached = member.offset
            if member.issparse():
                raise tarfile.ReadError(f'{member.name!r} is stored as a sparse file: pack it without --sparse')
            if member.isreg():
                yield member.name, member.offset_data, member.size
        mark = os.pread(file.fileno(), BLOCK, archive.offset)
        if len(mark) < BLOCK:
            raise tarfile.ReadError(f'it ends after {total:,} bytes without the mark that closes a tar')
        if any(mark):
            raise tarfile.ReadError(f'what is at byte {archive.offset:,} is no header of a member')


def advice(tar: Path) -> str:
    """What to do about a file that is no tar."""
    with tar.open('rb') as file:
        start = file.read(6)
    packers = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ\x00': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
    packed = [name for magic, name in packers.items() if start.startswith(magic)]
    if packed:
        return f' It is compressed with {packed[0]}: unpack it ({packed[0]} -d), images hardly get smaller.'
    return ' Copy or make it anew.'


def label_in(content: bytes) -> int | None:
    """The class number in a ``.cls`` or ``.json`` file; None if there is none."""
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
