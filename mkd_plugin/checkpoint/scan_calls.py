"""What a checkpoint's pickle may call, and with which arguments: tensors within their storages, numpy's arrays of numbers."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch

ROOM = 2**27  # bytes of tensors that even the smallest file may have
SHARE = 4  # bytes of tensors that a file may have besides, relative to its size: tensors may share a storage
MAX_DIMENSIONS = 64
UNTYPED = 'torch.storage.UntypedStorage'
STORAGES = {
    f'{module}.{name}': dtype
    for dtype, name in torch.storage._dtype_to_storage_type_map().items()
    for module in ('torch', 'torch.cuda')
} | {UNTYPED: torch.uint8}
DTYPES = {f'torch.{name}': value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
SCHEMES = {f'torch.{name}' for name, value in vars(torch).items() if isinstance(value, torch.qscheme)}
NUMBER = re.compile(r'b1|[iu][1248]|f[248]')  # numpy's names of the dtypes without fields, subarrays and objects
NAMESPACE, ORDERED = 'argparse.Namespace', 'collections.OrderedDict'
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'


class Name(str):
    """A class or function by its full name."""

    __slots__ = ()


class Node:
    """Takes the place of an object.

    Attributes:
        kind: 'list', 'dict', … or the function that made it.
        items: Placeholders of what it holds; keys and values of a dict alternate.
        bytes: Size of a storage, or of an element of a numpy dtype.
        view: Key and dtype of a storage; storage, offset, size and stride of a tensor.
        weight: Number of values in it, counting shared ones each time.
        depth: Levels of values in values.
        closed: Whether something holds it, so that it must not change any more.
    """

    __slots__ = ('bytes', 'closed', 'depth', 'items', 'kind', 'view', 'weight')

    def __init__(self, kind: str, *, size: int = 0, view: tuple[Any, ...] = (), weight: int = 1) -> None:
        self.kind, self.bytes, self.view, self.weight = kind, size, view, weight
        self.items: list[Any] = []
        self.depth, self.closed = 0, False


def refuse(what: str) -> NoReturn:
    """Raise UnpicklingError."""
    raise pickle.UnpicklingError(f'{what} is refused')


def kind_of(value: Any) -> str:
    """Return the kind of a placeholder, or the type of a plain value."""
    return value.kind if isinstance(value, Node) else type(value).__name__


def is_key(value: Any) -> bool:
    """Whether a value is a plain key. Tuples and huge integers can be made to take hours when a dict compares them."""
    small = isinstance(value, int) and -(2**63) <= value < 2**63
    return small or value is None or isinstance(value, (str, bytes, float)) or kind_of(value) == 'numbers'


class Storages:
    """The storages of a file, and how many bytes its tensors have together.

    Args:
        size: Size of the file, bytes.
        records: Size of each storage by its key; None if the file does not list them (torch's old format).
    """

    def __init__(self, size: int, records: Mapping[str, int] | None = None) -> None:
        self.size, self.records = size, records
        self.left = SHARE * size + ROOM
        self.found: dict[str, Node] = {}

    def find(self, address: list[Any]) -> Node:
        """Return the placeholder of a storage. Raises UnpicklingError if the file has fewer bytes."""
        if address[:1] != ['storage'] or address[5:] not in ([], [None]) or not isinstance(address[1], Name):
            refuse('a tensor without storage')
        _, name, key, location, count = address[:5]
        dtype = STORAGES.get(name)
        if dtype is None or not isinstance(key, str) or not isinstance(location, str) or not is_size(count):
            refuse('a storage without a known type, a name or a size')
        if key not in self.found:
            size = count * dtype.itemsize
            if self.records is None:
                self.size -= size
            if self.size < 0 or (self.records is not None and self.records.get(key) != size):
                held = 'fewer' if self.records is None else self.records.get(key, 'none')
                refuse(f'a storage of {size:,} bytes, of which the file has {held},')
            self.found[key] = Node('storage', size=size, view=(key, dtype))
        return self.found[key]

    def tensor(self, arguments: Sequence[Any], dtype: str | None = None) -> Node:
        """Return the placeholder of a tensor. Raises UnpicklingError if it reaches beyond its storage."""
        if len(arguments) < 4 or kind_of(arguments[0]) != 'storage':
            refuse('a tensor without storage')
        storage, offset, *sides = arguments[:4]
        step = (storage.view[1] if dtype is None else DTYPES[dtype]).itemsize
        size, stride = map(sizes_in, sides)
        if not is_size(offset) or len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            refuse('a tensor with an invalid shape')
        count = math.prod(size)
        last = offset + sum((side - 1) * jump for side, jump in zip(size, stride, strict=True))
        if count and (last + 1) * step > storage.bytes:
            refuse('a tensor larger than its storage')
        self.left -= count * step
        if self.left < 0:
            refuse(f'a total of tensors of more than {SHARE} times the bytes of the file')
        return Node('tensor', view=(storage, offset, size, stride))


def is_size(value: Any) -> bool:
    """Whether a value is an integer that a size or offset can be."""
    return isinstance(value, int) and 0 <= value < 2**63


def sizes_in(value: Any) -> list[int]:
    """Return the sizes in a tuple, a list or a ``torch.Size``."""
    if kind_of(value) == 'torch.Size' and len(value.items) == 1:
        value = value.items[0]
    if kind_of(value) not in ('tuple', 'list') or not all(map(is_size, value.items)):
        refuse('a tensor with an invalid shape')
    return list(value.items)


def rebuild_tensor(arguments: Sequence[Any], storages: Storages) -> Node:
    """Check ``(storage, offset, size, stride, …)``, or ``(tensor, …)`` of a parameter; torch would call hooks."""
    if any(kind_of(value) == ORDERED and value.items for value in arguments):
        refuse('a tensor with hooks')
    if arguments and isinstance(arguments[0], Node) and arguments[0].kind == 'tensor':
        return arguments[0]
    dtype = next((value for value in arguments[4:] if isinstance(value, Name) and value in DTYPES), None)
    return storages.tensor(arguments, dtype)


def rebuild_subclass(arguments: Sequence[Any], storages: Storages) -> Node:
    """Check ``(function, type, arguments, attributes)`` of a tensor that has Python attributes."""
    if len(arguments) != 4 or arguments[0] not in TENSORS or kind_of(arguments[2]) != 'tuple':
        refuse('a tensor of an unknown class')
    return rebuild_tensor(arguments[2].items, storages)


def first(arguments: Sequence[Any], storages: Storages) -> Any:
    """Return the first argument: TorchScript wraps lists and dicts in calls that only state their type."""
    return arguments[0]


def encode(arguments: Sequence[Any], storages: Storages) -> bytes:
    """Return bytes that a pickle holds as text; other encodings than this one may take very long."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ('latin1', 'latin-1'):
        refuse('GLOBAL _codecs.encode')
    return arguments[0].encode('latin1')


def plain_keys(arguments: Sequence[Any], storages: Storages) -> None:
    """Check that the list of a set, or of a dict's pairs from Python 2, has plain keys; a dict was checked before."""
    listed = [value.items for value in arguments if kind_of(value) == 'list']
    if len(arguments) > 1 or (arguments and not listed and kind_of(arguments[0]) != 'dict'):
        refuse('a collection of something else than a list')
    for value in listed[0] if listed else []:
        pair = value.items if kind_of(value) == 'list' else [value]  # a pair that is a tuple would be a key of a set
        if not pair or not is_key(pair[0]):
            refuse('a collection with keys other than strings and numbers')


def numpy_dtype(arguments: Sequence[Any], storages: Storages) -> Node:
    """Check the name of a dtype; the copy that it asks for keeps numpy's own dtype from being changed."""
    if len(arguments) != 3 or not isinstance(arguments[0], str) or not NUMBER.fullmatch(arguments[0]):
        refuse('a numpy dtype with fields, subarrays or objects')
    if arguments[1] or arguments[2] != 1:
        refuse('a numpy dtype that is not a copy')
    return Node('numpy.dtype', size=int(arguments[0][1:]))


def numpy_array(arguments: Sequence[Any], storages: Storages) -> Node:
    """Check that an array is empty before it gets its state."""
    start = arguments[1].items if len(arguments) == 3 and kind_of(arguments[1]) == 'tuple' else None
    if start != [0] or arguments[0] != 'numpy.ndarray' or arguments[2] not in ('b', b'b'):
        refuse('a numpy array of a class or size of its own')
    return Node('numpy.ndarray')


def numpy_scalar(arguments: Sequence[Any], storages: Storages) -> Node:
    """Check that a number has as many bytes as its dtype."""
    if [kind_of(value) for value in arguments] not in (['numpy.dtype', 'bytes'], ['numpy.dtype', 'str']):
        refuse('a numpy number of something else than bytes')
    if len(arguments[1]) != arguments[0].bytes:
        refuse('a numpy number of another size')
    return Node('numpy.number')


def dtype_state(state: Any, node: Node) -> None:
    """Allow the byte order, and nothing else, to be set in a numpy dtype."""
    values = state.items if kind_of(state) == 'tuple' else []
    if (
        len(values) != 8
        or values[1] not in ('<', '>', '|', '=')
        or [values[0], *values[2:]] != [3, *[None] * 3, -1, -1, 0]
    ):
        refuse('a numpy dtype with fields, subarrays or objects')


def array_state(state: Any, node: Node) -> None:
    """Check that an array has as many bytes as its shape and dtype."""
    values = state.items if kind_of(state) == 'tuple' else []
    if len(values) != 5 or kind_of(values[2]) != 'numpy.dtype' or not isinstance(values[4], (bytes, str)):
        refuse('a numpy array of something else than numbers')
    if math.prod(sizes_in(values[1])) * values[2].bytes != len(values[4]):
        refuse('a numpy array of another size than its content')


def attributes(state: Any, node: Node) -> None:
    """Check that attributes are a dict; those of a dict must be hidden ones, so that they replace no method."""
    names = state.items[::2] if kind_of(state) in ('dict', ORDERED) else [None]
    if not all(isinstance(name, str) and (name.startswith('_') or node.kind != ORDERED) for name in names):
        refuse(f'the state of a {node.kind}')


def anything(arguments: Sequence[Any], storages: Storages) -> None:
    """Check nothing: the function fails by itself, and cheaply, if its arguments are wrong."""


TENSORS = tuple(f'torch._utils._rebuild_{name}' for name in ('tensor', 'tensor_v2', 'tensor_v3', 'qtensor'))
PARAMETERS = tuple(f'torch._utils._rebuild_parameter{more}' for more in ('', '_with_state'))
# What a pickle may call: each checks the arguments and returns the placeholder of the result, None for an ordinary one.
CALLS: dict[str, Callable[[Sequence[Any], Storages], Any]] = {
    **dict.fromkeys((*TENSORS, *PARAMETERS), rebuild_tensor),
    'torch._tensor._rebuild_from_type_v2': rebuild_subclass,
    **{f'torch.jit._pickle.build_{kind}list': first for kind in ('int', 'double', 'bool', 'tensor')},
    'torch.jit._pickle.restore_type_tag': first,
    **dict.fromkeys(
        ('torch.Size', 'torch.device', 'torch.serialization._get_layout', 'builtins.complex', 'builtins.getattr'),
        anything,
    ),
    **dict.fromkeys((ORDERED, 'collections.Counter', 'builtins.set'), plain_keys),
    '_codecs.encode': encode,
    'numpy.dtype': numpy_dtype,
    **{f'numpy.{core}.multiarray._reconstruct': numpy_array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': numpy_scalar for core in ('core', '_core')},
}
# Objects that may get a state.
STATES: dict[str, Callable[[Any, Node], None]] = {
    **dict.fromkeys((NAMESPACE, HISTORY, ORDERED), attributes),
    'numpy.dtype': dtype_state,
    'numpy.ndarray': array_state,
}
# Classes that may be made without arguments, and what may be named without being called.
NEW = {NAMESPACE, HISTORY}
VALUES = {*NEW, *STORAGES, *DTYPES, *SCHEMES, 'numpy.ndarray', 'torch.Tensor', 'torch.nn.parameter.Parameter'}
