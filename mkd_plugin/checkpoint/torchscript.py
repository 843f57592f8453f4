"""Tensors of a TorchScript archive (OpenAI's CLIP), read without running anything of it.

``torch.load(weights_only=True)`` rejects these files, and ``torch.jit.load`` compiles and may run their code. Here only the
pickle of attributes is read, by an unpickler that knows nothing but tensors: every class of the archive is an inert bag.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}
PICKLE_LIMIT = 64 * 2**20


class Inert:
    """Stands in for every class of the archive: keeps its attributes, and does nothing."""

    attributes: Any = None

    def __init__(self, *ignored: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class Storage(NamedTuple):
    """A storage's bytes, as a flat tensor."""

    flat: Tensor


class Known:
    """A function that the pickle may call. It has no attributes that the pickle could change."""

    __slots__ = ('_call',)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, '_call', call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f'setting {name} is refused')

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError('changing a function is refused')


def build_tensor(storage: Any, offset: Any, size: Any, stride: Any, *ignored: Any) -> Tensor:
    """A tensor of a storage. Raises UnpicklingError if it would reach beyond it, or repeat its elements."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError('a tensor without a storage is refused')
    numbers = (offset, *size, *stride)
    if any(not isinstance(number, int) or number < 0 for number in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError('a tensor of impossible shape is refused')
    elements = 1
    for side in size:
        elements *= side
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if elements > storage.flat.numel() or (elements and last >= storage.flat.numel()):
        raise pickle.UnpicklingError('a tensor that is larger than its storage is refused')
    return storage.flat.as_strided(size, stride, offset)


def first(value: Any, *ignored: Any) -> Any:
    """The argument itself: lists and dicts of TorchScript are wrapped in calls that only state their type."""
    return value


CALLABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ('torch._utils', '_rebuild_tensor_v2'): build_tensor,
    ('torch._utils', '_rebuild_parameter'): first,
    **{('torch.jit._pickle', name): first for name in ('build_intlist', 'build_doublelist', 'build_boollist')},
    **{('torch.jit._pickle', name): first for name in ('build_tensorlist', 'restore_type_tag')},
}


class AttributeUnpickler(pickle.Unpickler):
    """Reads the attributes of a TorchScript module."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f'{root}/data.pkl'))
        self.archive, self.root = archive, root
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Inert classes, storages, and the few functions that put tensors together; nothing else."""
        if module == '__torch__' or module.startswith('__torch__.'):
            return Inert
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        if (module, name) in CALLABLE:
            return Known(CALLABLE[module, name])
        if (module, name) == ('collections', 'OrderedDict'):
            return Known(collections.OrderedDict)
        raise pickle.UnpicklingError(f'GLOBAL {module}.{name} is refused')

    def persistent_load(self, pid: Any) -> Storage:
        """A storage by its number in the archive."""
        kind, dtype, key = pid[:3]
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f'{kind!r} is refused')
        if key not in self.storages:
            content = bytearray(self.archive.read(f'{self.root}/data/{key}'))
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = Storage(torch.frombuffer(content, dtype=dtype) if content else empty)
        return self.storages[key]


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The tensors of the archive's module, by the names that its ``state_dict()`` would have.

    Raises:
        UnpicklingError: It holds more than modules of tensors and plain values.
    """
    pickled = next(name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl'))
    if archive.getinfo(pickled).file_size > PICKLE_LIMIT:
        raise pickle.UnpicklingError(f'a pickle of more than {PICKLE_LIMIT} bytes is refused')
    module = AttributeUnpickler(archive, pickled.split('/')[0]).load()
    return dict(tensors_of(module, '', set()))


def tensors_of(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors among the attributes of a module and of the modules in it."""
    if not isinstance(module, Inert) or not isinstance(module.attributes, dict) or id(module) in seen:
        return
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f'{prefix}{name}', value
        else:
            yield from tensors_of(value, f'{prefix}{name}.', seen)
