"""Read the tensors of a TorchScript archive (OpenAI's CLIP) without running its code.

``torch.load(weights_only=True)`` rejects these files, and ``torch.jit.load`` compiles their code and may run it. This reader
only unpickles the module's attributes and allows nothing but tensors; every class of the archive becomes an inert object.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mkd_plugin.checkpoint.archive import root_of

DTYPES = {
    **dict(DoubleStorage=torch.float64, FloatStorage=torch.float32, HalfStorage=torch.float16),
    **dict(BFloat16Storage=torch.bfloat16, LongStorage=torch.int64, IntStorage=torch.int32),
    **dict(ShortStorage=torch.int16, CharStorage=torch.int8, ByteStorage=torch.uint8, BoolStorage=torch.bool),
}


class Inert:
    """Replaces every class of the archive: keeps the attributes and does nothing."""

    attributes: Any = None

    def __init__(self, *ignored: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class Storage(NamedTuple):
    """The content of a storage as a flat tensor."""

    flat: Tensor


class AllowedCall:
    """A function that the pickle may call, without attributes that the pickle could change."""

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
    """View a storage as a tensor. Raises UnpicklingError if it would exceed the storage or repeat its elements."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError('a tensor without storage is refused')
    numbers = (offset, *size, *stride)
    if any(not isinstance(number, int) or number < 0 for number in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError('a tensor with an invalid shape is refused')
    elements = 1
    for side in size:
        elements *= side
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if elements > storage.flat.numel() or (elements and last >= storage.flat.numel()):
        raise pickle.UnpicklingError('a tensor larger than its storage is refused')
    return storage.flat.as_strided(size, stride, offset)


def first(value: Any, *ignored: Any) -> Any:
    """Return the first argument: TorchScript wraps lists and dicts in calls that only state their type."""
    return value


CALLABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ('torch._utils', '_rebuild_tensor_v2'): build_tensor,
    ('torch._utils', '_rebuild_parameter'): first,
    **{('torch.jit._pickle', f'build_{kind}list'): first for kind in ('int', 'double', 'bool', 'tensor')},
    ('torch.jit._pickle', 'restore_type_tag'): first,
}


class AttributeUnpickler(pickle.Unpickler):
    """Unpickles the attributes of a TorchScript module."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f'{root}/data.pkl'))
        self.archive, self.root = archive, root
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve classes to inert objects, storages to dtypes, and the few functions that rebuild tensors."""
        if module == '__torch__' or module.startswith('__torch__.'):
            return Inert
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        if (module, name) in CALLABLE:
            return AllowedCall(CALLABLE[module, name])
        if (module, name) == ('collections', 'OrderedDict'):
            return AllowedCall(collections.OrderedDict)
        raise pickle.UnpicklingError(f'GLOBAL {module}.{name} is refused')

    def persistent_load(self, pid: Any) -> Storage:
        """Read a storage by its key in the archive."""
        kind, dtype, key = pid[:3]
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f'{kind!r} is refused')
        if key not in self.storages:
            content = bytearray(self.archive.read(f'{self.root}/data/{key}'))
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = Storage(torch.frombuffer(content, dtype=dtype) if content else empty)
        return self.storages[key]


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Read the tensors of an archive that was checked, by the names of the module's ``state_dict()``.

    Raises UnpicklingError for other contents.
    """
    module = AttributeUnpickler(archive, root_of(archive)).load()
    return dict(tensors_of(module, '', set()))


def tensors_of(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Walk the tensors among the attributes of a module and its submodules."""
    if not isinstance(module, Inert) or not isinstance(module.attributes, dict) or id(module) in seen:
        return
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f'{prefix}{name}', value
        else:
            yield from tensors_of(value, f'{prefix}{name}.', seen)
