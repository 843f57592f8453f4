"""Checkpoints that would run code, or cost far more time or memory than their size allows.

Pickles are written opcode by opcode: ``doubled(40)`` has 2^40 values in 200 bytes.
"""

from __future__ import annotations

import io
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

WEIGHTS = dict(weight=torch.arange(6.0).view(2, 3), bias=torch.tensor([0.5, -1.0]))
MIB = 2**20


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.trace,)


def hostile_file(path: Path, trace: Path, *, zipped: bool) -> Path:
    """Write a checkpoint that makes the folder ``trace`` when it is unpickled."""
    torch.save(dict(state_dict=WEIGHTS, meta=Hostile(trace)), path, _use_new_zipfile_serialization=zipped)
    return path


def archive(path: Path, content: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    """Write an archive as ``torch.save`` does, with this pickle and these storages."""
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('file/data.pkl', content)
        file.writestr('file/version', '3\n')
        file.writestr('file/byteorder', 'little')
        for name, record in (records or {}).items():
            file.writestr(f'file/data/{name}', record)
    return path


def old_format(path: Path, content: bytes, after: bytes = b'') -> Path:
    """Write a file in torch's old format, with this pickle and, after it, a list of no storages."""
    start = io.BytesIO()
    for value in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {'little_endian': True}):
        pickle.dump(value, start, protocol=2)
    path.write_bytes(start.getvalue() + content + pickle.dumps([], protocol=2) + after)
    return path


def number(value: int) -> bytes:
    """Push an integer."""
    encoded = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def text(value: str) -> bytes:
    """Push a string."""
    return pickle.BINUNICODE + struct.pack('<I', len(value.encode())) + value.encode()


def name(full: str) -> bytes:
    """Push a class or function."""
    module, _, own = full.rpartition('.')
    return pickle.GLOBAL + f'{module}\n{own}\n'.encode()


def many(*values: bytes) -> bytes:
    """Push a tuple."""
    return pickle.MARK + b''.join(values) + pickle.TUPLE


def call(function: str, *arguments: bytes) -> bytes:
    """Push the result of a call."""
    return name(function) + many(*arguments) + pickle.REDUCE


def new(cls: str, *arguments: bytes) -> bytes:
    """Push a new object of a class."""
    return name(cls) + many(*arguments) + pickle.NEWOBJ


def doubled(times: int, start: bytes = pickle.EMPTY_TUPLE) -> bytes:
    """Push a tuple that holds the same value twice, and so on."""
    return start + b'q\x00h\x00\x86' * times


def meta(value: bytes) -> bytes:
    """Write the pickle of ``{'meta': value}``."""
    return b'\x80\x02}' + text('meta') + value + b's.'


def storage(key: str, count: int, dtype: str = 'torch.FloatStorage') -> bytes:
    """Push the storage of a record."""
    return many(text('storage'), name(dtype), text(key), text('cpu'), number(count)) + pickle.BINPERSID


def tensor(place: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Push a tensor in a storage."""
    sides = (many(*map(number, numbers)) for numbers in (size, stride))
    arguments = (place, number(offset), *sides, pickle.NEWFALSE, call('collections.OrderedDict'))
    return call('torch._utils._rebuild_tensor_v2', *arguments)


def numpy_dtype(state: bytes = b'', spec: bytes | None = None, copied: int = 1) -> bytes:
    """Push a dtype of numpy, with a state of its own."""
    return call('numpy.dtype', spec or text('f8'), number(0), number(copied)) + (state + pickle.BUILD if state else b'')


def cost_of(action: Callable[[], Any]) -> tuple[str, float, int]:
    """Run an action in a copy of this process: its error as text, its seconds, and the bytes by which memory grew at most."""
    context = get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=run_and_tell, args=(action, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return 'the process died', float('inf'), 2**63
    finally:
        child.join()


def run_and_tell(action: Callable[[], Any], sender: Any) -> None:
    """Run an action with little memory and time, and send its cost."""
    resident, allowed = memory()['VmRSS'], memory()['VmSize'] + 6 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    start, told = time.process_time(), ''
    try:
        action()
    except Exception as error:
        told = f'{type(error).__name__}: {error}'
    sender.send((told, time.process_time() - start, memory()['VmHWM'] - resident))


def memory() -> dict[str, int]:
    """Return what the system tells about this process's memory, in bytes."""
    lines = (line.split() for line in Path('/proc/self/status').read_text().splitlines())
    return {words[0].rstrip(':'): int(words[1]) * 1024 for words in lines if words[0].startswith(('Vm', 'Rss'))}
