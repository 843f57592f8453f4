"""Check the files of ``torch.save``, a zip archive of records or torch's old format; read those of ``torch.jit.save``, and
NumPy's ``.npz``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from mmap import mmap
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mkd_plugin.checkpoint.scan import MAX_PICKLE_BYTES, Scan
from mkd_plugin.checkpoint.scan_calls import Node, Storages, kind_of, refuse

ZIP = b'PK\x03\x04'  # how an archive begins
MAX_DIRECTORY_BYTES = 2**23  # of an archive, about 100,000 records
EXTRA_BYTES = 64 * 2**20  # what an archive may hold besides tensors: code, pickles, its directory


def open_archive(file: BinaryIO, size: int) -> zipfile.ZipFile:
    """Open an archive after a look at its directory.

    Raises:
        ValueError: The directory is too long, or so unusual that two readers could find different records in it; the records
            unpack to far more than the ``size`` of the file in bytes, or tensors are compressed.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end is None:
        raise ValueError('it has no directory of records')
    entries, directory, comment, place = end[4], end[5], end[7], end[9]
    if comment or place + zipfile.sizeEndCentDir != size or directory > MAX_DIRECTORY_BYTES:  # type: ignore[attr-defined]
        raise ValueError(f'its directory of {directory:,} bytes is not one that torch writes')
    archive = zipfile.ZipFile(file)
    records = archive.infolist()
    if not any(record.CRC for record in records):  # torch.serialization.set_crc32_options(False)
        for record in records:
            record.CRC = None  # type: ignore[assignment] # zipfile then compares nothing
    names = {record.filename.lower() for record in records}
    if len(names) != len(records) or len(records) != entries or not all(name.isascii() for name in names):
        raise ValueError('its directory has records of the same name')
    unpacked = sum(record.file_size for record in records)
    if unpacked > 2 * size + EXTRA_BYTES:
        raise ValueError(
            f'it would unpack to {unpacked:,} bytes from {size:,}; torch stores tensors uncompressed, so this is no checkpoint'
        )
    for record in records:
        kept = record.filename.partition('/')[2]
        if kept.startswith('data') and record.compress_type != zipfile.ZIP_STORED:
            raise ValueError('it was compressed after torch wrote it; unpack it, and pack it again without compression')
    return archive


def root_of(archive: zipfile.ZipFile) -> str:
    """Return the folder of all records, as torch finds it."""
    return archive.infolist()[0].filename.partition('/')[0]


def scan_archive(archive: zipfile.ZipFile, size: int) -> Any:
    """Check the pickle of an archive, and return the placeholder of a TorchScript module; None for other archives.

    Raises UnpicklingError, or KeyError if there is no pickle.
    """
    root = root_of(archive)
    if archive.getinfo(f'{root}/data.pkl').file_size > MAX_PICKLE_BYTES:
        refuse(f'a pickle of more than {MAX_PICKLE_BYTES:,} bytes')
    folder = f'{root}/data/'
    records = {
        record.filename.removeprefix(folder): record.file_size
        for record in archive.infolist()
        if record.filename.startswith(folder)
    }
    scripted = f'{root}/constants.pkl' in archive.NameToInfo
    try:
        content = archive.read(f'{root}/data.pkl')
    except zipfile.BadZipFile as error:
        raise ValueError(f'damaged: {error}') from error
    value = Scan(content, Storages(size, records), scripted=scripted).load()
    return value if scripted else None


def read_torchscript(archive: zipfile.ZipFile, module: Any) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive (OpenAI's CLIP), by the names of the module's ``state_dict()``.

    ``torch.load(weights_only=True)`` rejects these files, and ``torch.jit.load`` compiles their code and may run it. Here
    nothing is built but tensors, from the placeholder that :func:`scan_archive` returned.
    """
    contents: dict[str, Tensor] = {}
    seen: set[int] = set()

    def read(tensor: Node) -> Tensor:
        storage, offset, size, stride = tensor.view
        key, dtype = storage.view
        if key not in contents:
            content = bytearray(archive.read(f'{root_of(archive)}/data/{key}'))
            contents[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return contents[key].as_strided(size, stride, offset)

    def tensors_of(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
        state: Any = node.items[-1] if kind_of(node).startswith('__torch__.') and node.items else None
        if kind_of(state) != 'dict' or id(node) in seen:
            return
        seen.add(id(node))
        for name, value in zip(state.items[::2], state.items[1::2], strict=True):
            if kind_of(value) == 'tensor':
                yield f'{prefix}{name}', read(value)
            else:
                yield from tensors_of(value, f'{prefix}{name}.')

    return dict(tensors_of(module, ''))


def holds_arrays(archive: zipfile.ZipFile) -> bool:
    """Check whether an archive is one that ``numpy.savez`` writes."""
    names = archive.namelist()
    return bool(names) and all(name.endswith('.npy') for name in names)


def read_arrays(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Read the arrays of a ``.npz`` file (big_vision), which :func:`open_archive` has checked.

    Headers are data here: nothing is unpickled, and no array is larger than its record.
    """
    arrays = {}
    for record in archive.infolist():
        content = archive.read(record)
        stream = BytesIO(content)
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(stream)  # type: ignore[no-untyped-call]
        is_bfloat16 = dtype == np.dtype('V2')  # as ml_dtypes stores it
        array = np.frombuffer(bytearray(content), 'int16' if is_bfloat16 else dtype, offset=stream.tell())
        tensor = torch.from_numpy(array.reshape(shape, order='F' if is_fortran else 'C'))
        arrays[record.filename.removesuffix('.npy')] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    return arrays


def scan_old_format(data: bytes | mmap) -> None:
    """Check a file of torch's old format: five pickles, then the storages that the last one lists."""
    storages = Storages(len(data))
    at, values = 0, []
    for _ in range(5):
        scan = Scan(data, storages, start=at)
        values.append(scan.load())
        at = scan.end
        if values[0] != torch.serialization.MAGIC_NUMBER:
            refuse('a file that does not begin as a checkpoint')
    keys = values[-1].items if kind_of(values[-1]) == 'list' else []
    if len(set(keys)) != len(storages.found) or not storages.found.keys() >= set(keys):
        refuse('a file whose list of storages is not that of its tensors')
    if at + sum(8 + storage.bytes for storage in storages.found.values()) > len(data):
        refuse('a file that ends early')
