"""Checksums of checkpoint files, compared before their content is used.

Every file of ``torch.save`` since torch 1.6, whoever wrote it, is a zip archive with a CRC-32 of each record, which
``torch.load`` does not compare. A ``.safetensors`` file has none; those of this package hold one in their metadata. Older
files of ``torch.save`` have no checksum: of these, only damage that makes them unreadable is noticed.
"""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

METADATA = 'mkd_crc32'  # key in the metadata of a .safetensors file: JSON of name → CRC-32
PICKLE = '/data.pkl'  # the record with everything but the tensors' values
FOLDER = 0x10  # attribute of a folder: torch reads no bytes of such a record, and leaves the tensor as memory was
CHUNK = 2**20  # bytes read at a time
RECENT = 2 * 10**9  # nanoseconds
THREADS = min(8, os.cpu_count() or 1)  # zlib.crc32 runs in parallel; more threads only wait for the memory


@contextmanager
def checked_records(source: Path | BinaryIO, *, ending: str = '') -> Iterator[None]:
    """Compare a zip archive, given as a path or as bytes, with its checksums in other threads while the block reads it.

    When the block ends or raises, it raises as :func:`check_records`.
    """
    with ThreadPoolExecutor(1) as beside:
        if isinstance(source, Path):
            checked = beside.submit(check_records, source, ending=ending)
        else:
            source.seek(0)
            checked = beside.submit(_compare, io.BytesIO(source.read()), ending)
            source.seek(0)
        try:
            yield
        finally:
            checked.result()


def check_records(path: Path, *, ending: str = '') -> None:
    """Compare the records of a zip archive with their checksums, those only whose names have an ``ending``.

    A file that was found whole is not read again by this process until its size or time changes. The times of files have
    steps of some milliseconds, so this leaves out files that were written in the last two seconds.

    Raises:
        ValueError: Some records do not match; the first is named.
        OSError, zipfile.BadZipFile: The file cannot be read, or is no zip archive.
    """
    path = path.resolve()
    status, now = path.stat(), time.time_ns()
    recent = now if now - status.st_mtime_ns < RECENT else 0
    _check_unchanged(path, ending, (status.st_ino, status.st_size, status.st_mtime_ns, recent))


@lru_cache(maxsize=64)
def _check_unchanged(path: Path, ending: str, status: tuple[int, ...]) -> None:
    """Do the work of :func:`check_records`; an exception is not remembered."""
    with path.open('rb') as file:
        _compare(file, ending)


def _compare(file: BinaryIO, ending: str) -> None:
    with zipfile.ZipFile(file) as archive, ThreadPoolExecutor(THREADS) as pool:
        every = archive.infolist()
        if not any(entry.CRC for entry in every):  # torch.serialization.set_crc32_options(False)
            return
        entries = [entry for entry in every if entry.filename.endswith(ending)]
        whole = list(pool.map(partial(_is_whole, archive), entries))
    damaged = [entry.filename for entry, good in zip(entries, whole, strict=True) if not good]
    if damaged:
        raise ValueError(
            f'damaged: {len(damaged)} of {len(entries)} records do not match their checksum, first {damaged[0]!r}'
        )


def _is_whole(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether a record has its checksum. Reads the file, not a map of it: a failing disk then raises OSError."""
    cut = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size
    if cut or entry.external_attr & FOLDER:
        return False
    try:
        with archive.open(entry) as record:
            while record.read(CHUNK):
                pass
    except (
        zipfile.BadZipFile,
        struct.error,
        zlib.error,
        EOFError,
        RuntimeError,
    ):  # RuntimeError: it is marked as encrypted
        return False
    return True


def tensor_checksums(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Return the CRC-32 of CPU tensors and texts by name, as JSON; that of a tensor covers its dtype and shape."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(tensors, pool.map(_tensor_checksum, tensors.values()), strict=True))
    return json.dumps(found | {name: zlib.crc32(text.encode()) for name, text in texts.items()})


def _tensor_checksum(tensor: Tensor) -> int:
    start = zlib.crc32(f'{tensor.dtype} {tuple(tensor.shape)}'.encode())
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(content.numpy().data, start) if len(content) else start


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Compare the content of a .safetensors file with the checksums in its metadata, if it has any.

    Raises:
        ValueError: Tensors or texts are missing or do not match; the first is named.
    """
    if METADATA not in metadata:
        return
    wanted = json.loads(metadata[METADATA])
    texts = {name: text for name, text in metadata.items() if name in wanted}
    found = json.loads(tensor_checksums(tensors, texts))
    damaged = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if damaged:
        raise ValueError(
            f'damaged: {len(damaged)} of {len(wanted)} tensors or texts do not match, first {damaged[0]!r}'
        )
