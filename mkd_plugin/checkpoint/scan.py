"""Check a pickle before anything is built from it.

The opcodes are interpreted with placeholders instead of objects, at a cost that the size of the file bounds. What would make
reading expensive, or reach memory that is not the file's, is refused: values that unfold to many times the size of the file,
calls with sizes that the file invents, tensors larger than their storage, forged dtypes of numpy.
"""

from __future__ import annotations

import io
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Any

from mkd_plugin.checkpoint.scan_calls import CALLS, NEW, STATES, VALUES, Name, Node, Storages, is_key, kind_of, refuse

MAX_PICKLE_BYTES = 2**28  # a million iterations of ten logged values take 110 MB
MAX_STEPS = 2_000_000  # opcodes, without long runs of numbers; a file of 40,000 tensors has as many
MAX_DEPTH = 200  # levels of values in values
MEMORY = 2**27  # bytes that even the smallest pickle may take
SHARE = 4  # bytes that a pickle may take besides, relative to the size of its file
UNFOLDED = 2**20  # values in the smallest pickle, counting shared ones each time
UNFOLDING = 8  # likewise, relative to the bytes of the pickle

# Numbers up to the end of a list or tuple, as a log's history has millions of in groups of 1,000: floating-point ones, small
# integers, or any.
NUMBERS = re.compile(
    rb'(?:(?:G.{8}){32,1024}|(?:K.){32,1024}|(?:G.{8}|K.|M..|J.{4}|[N\x88\x89]){32,1024})(?=[et])', re.DOTALL
)
MARK = object()
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
DICTS = ('dict', 'collections.OrderedDict', 'collections.Counter')


class Scan:
    """Interprets one pickle.

    Args:
        data: Bytes with the pickle.
        storages: Where the contents of its tensors are.
        start: Position of the first opcode.
        scripted: Whether it is TorchScript's, with classes of its own.
    """

    def __init__(self, data: bytes | mmap, storages: Storages, *, start: int = 0, scripted: bool = False) -> None:
        self.data, self.start, self.end = data, start, start
        self.storages, self.scripted = storages, scripted
        self.memory = SHARE * storages.size + MEMORY  # what is left of it
        self.largest = UNFOLDING * (len(data) - start) + UNFOLDED
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Interpret the opcodes up to STOP and return the placeholder of the value. Raises ValueError or UnpicklingError."""
        file: Any = io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data
        file.seek(self.start)
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if name in PUSHED:
                self.push(CONSTANTS.get(name, argument), 20 + len(argument) if isinstance(argument, str) else 20)
            elif name in ACTIONS:
                ACTIONS[name](self, argument)
                if name == 'MARK':
                    self.skip_numbers(file)
            elif name not in ('PROTO', 'FRAME', 'STOP'):
                refuse(f'the opcode {name}')
            if step > MAX_STEPS or self.memory < 0:
                refuse('a pickle with more values than a checkpoint of this size has')
        self.end = file.tell()
        return self.pop()

    def skip_numbers(self, file: Any) -> None:
        """Let one placeholder stand for all values of a list or tuple if they are plain numbers."""
        run = NUMBERS.match(self.data, file.tell())
        if run is not None:
            file.seek(run.end())
            self.push(Node('numbers', weight=len(run[0])), 4 * len(run[0]) + 28 * run[0].count(b'M'))
            if run.end() - self.start > MAX_PICKLE_BYTES:
                refuse(f'a pickle of more than {MAX_PICKLE_BYTES:,} bytes')

    def push(self, value: Any, memory: int = 20) -> None:
        """Put a value that takes so many bytes on the stack."""
        self.memory -= memory
        self.stack.append(value)

    def pop(self, kinds: Sequence[str] = ()) -> Any:
        """Take a value from the stack, of one of these kinds if there are any."""
        if not self.stack or self.stack[-1] is MARK:
            refuse('a pickle without a value')
        value = self.stack.pop()
        return value if not kinds or kind_of(value) in kinds else refuse(f'a change of a {kind_of(value)}')

    def pop_group(self) -> list[Any]:
        """Take the values since the last mark from the stack."""
        group: list[Any] = []
        while self.stack:
            value = self.stack.pop()
            if value is MARK:
                return group[::-1]
            group.append(value)
        refuse('a pickle without a mark')

    def make(self, kind: str, items: Sequence[Any] = ()) -> None:
        """Put a new object on the stack."""
        self.memory -= 256
        self.add(Node(kind), items)

    def add(self, node: Node, items: Sequence[Any]) -> None:
        """Put values into an object, and the object back on the stack. What is used elsewhere must not change any more."""
        if node.closed:
            refuse('a value that changes after its use')
        for item in items:
            if isinstance(item, Node):
                item.closed = True
                node.weight += item.weight
                node.depth = max(node.depth, item.depth + 1)
            else:
                node.weight += 1 + len(item) // 8 if isinstance(item, (str, bytes)) else 1
        node.items.extend(items)
        if node.weight > self.largest or node.depth > MAX_DEPTH:
            refuse(f'a value of more than {self.largest:,} values, counting shared ones, or {MAX_DEPTH} levels')
        self.push(node, 8 * len(items))

    def append(self, items: list[Any]) -> None:
        """Put values into the list on top of the stack."""
        self.add(self.pop(['list']), items)

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top of the stack."""
        if len(items) % 2 or not all(map(is_key, items[::2])):
            refuse('a dict with keys other than strings and numbers')
        self.add(self.pop(DICTS), items)

    def find(self, module: str, name: str) -> None:
        """Put a class or function on the stack if ordinary checkpoints have it."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f'{module}.{name}'
        if not (full in CALLS or full in VALUES or self.is_script(full)):
            refuse(f'GLOBAL {full}')
        self.push(Name(full))

    def is_script(self, name: str) -> bool:
        """Whether a name is that of a class of a TorchScript archive, of which the reader makes inert objects."""
        return self.scripted and name.startswith('__torch__.')

    def call(self, new: bool) -> None:
        """Replace a function and its arguments by the placeholder of the result."""
        arguments, function = self.pop(['tuple']).items, self.pop()
        if not isinstance(function, Name):
            refuse('a call of something else than a function')
        if not self.is_script(function) and (function not in (NEW if new else CALLS) or (new and arguments)):
            refuse(f'GLOBAL {function}')
        result = CALLS[function](arguments, self.storages) if function in CALLS else None
        if result is None:
            self.make(function, arguments)
        else:
            self.push(result, 128 + (len(result) if isinstance(result, bytes) else 0))

    def build(self) -> None:
        """Give the object on top of the stack its state."""
        state, node = self.pop(), self.pop()
        kind = kind_of(node)
        if kind in STATES:
            STATES[kind](state, node)
        elif not self.is_script(kind):
            refuse(f'the state of a {kind}')
        self.add(node, [state])

    def get(self, index: int) -> None:
        """Put a value of the memo on the stack. Used twice, it must not change any more: so nothing holds itself."""
        if index not in self.memo:
            refuse('a value that is not in the memo')
        if isinstance(self.memo[index], Node):
            self.memo[index].closed = True
        self.push(self.memo[index], 4)

    def put(self, index: int) -> None:
        """Note the value on top of the stack in the memo."""
        if index > len(self.data):
            refuse('a memo larger than the file')
        self.memo[index] = value = self.pop()
        self.push(value, 60)


# Opcodes that torch's own reader knows, and those with which newer pickles name what they would call.
TEXTS = ('BINUNICODE', 'SHORT_BINUNICODE', 'SHORT_BINSTRING')
PUSHED = {*CONSTANTS, *TEXTS, 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'}
ACTIONS: dict[str, Callable[[Scan, Any], None]] = {
    'GLOBAL': lambda scan, names: scan.find(*names.split(' ', 1)),
    'STACK_GLOBAL': lambda scan, _: scan.find(*map(str, [scan.pop(), scan.pop()][::-1])),
    'NEWOBJ': lambda scan, _: scan.call(True),
    'REDUCE': lambda scan, _: scan.call(False),
    'BUILD': lambda scan, _: scan.build(),
    'BINPERSID': lambda scan, _: scan.push(scan.storages.find(scan.pop(['tuple']).items), 128),
    'MARK': lambda scan, _: scan.push(MARK, 64),
    'APPEND': lambda scan, _: scan.append([scan.pop()]),
    'APPENDS': lambda scan, _: scan.append(scan.pop_group()),
    'SETITEM': lambda scan, _: scan.set_items([scan.pop(), scan.pop()][::-1]),
    'SETITEMS': lambda scan, _: scan.set_items(scan.pop_group()),
    'TUPLE': lambda scan, _: scan.make('tuple', scan.pop_group()),
    'TUPLE1': lambda scan, _: scan.make('tuple', [scan.pop()]),
    'TUPLE2': lambda scan, _: scan.make('tuple', [scan.pop(), scan.pop()][::-1]),
    'TUPLE3': lambda scan, _: scan.make('tuple', [scan.pop(), scan.pop(), scan.pop()][::-1]),
    'EMPTY_TUPLE': lambda scan, _: scan.make('tuple'),
    'EMPTY_LIST': lambda scan, _: scan.make('list'),
    'EMPTY_DICT': lambda scan, _: scan.make('dict'),
    'EMPTY_SET': lambda scan, _: scan.make('set'),
    **dict.fromkeys(('BINGET', 'LONG_BINGET'), Scan.get),
    **dict.fromkeys(('BINPUT', 'LONG_BINPUT'), Scan.put),
    'MEMOIZE': lambda scan, _: scan.put(len(scan.memo)),
}  # fmt: skip
