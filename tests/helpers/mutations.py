"""Strategies of hypothesis that damage files: the bytes of any file, and the values of structured ones."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st

Edit = tuple[Any, ...]

# Places in a file: near its start and end, where headers and directories are, or anywhere (in millionths of its length).
PLACES = st.one_of(
    st.tuples(st.just('start'), st.integers(0, 300)),
    st.tuples(st.just('end'), st.integers(1, 300)),
    st.tuples(st.just('share'), st.integers(0, 10**6)),
)
LENGTHS = st.sampled_from([1, 2, 4, 16, 64, 512, 4096])
NUMBERS = st.sampled_from([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
# Accidents of disks and networks, and on purpose.
ACCIDENTS = st.one_of(
    st.tuples(st.just('flip'), PLACES, st.integers(0, 7)),
    st.tuples(st.just('cut'), PLACES),
    st.tuples(st.just('zero'), PLACES, LENGTHS),
    st.tuples(st.just('write'), PLACES, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just('swap'), PLACES, PLACES, LENGTHS),
)
LIES = st.one_of(
    st.tuples(st.just('number'), PLACES, NUMBERS, st.sampled_from(['<H', '<I', '<Q', '>H', '>I'])),
    st.tuples(st.just('insert'), PLACES, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just('repeat'), PLACES, LENGTHS, st.sampled_from([1, 8, 64])),
)
DAMAGE = st.lists(ACCIDENTS, min_size=1, max_size=3)
TAMPERING = st.lists(st.one_of(ACCIDENTS, LIES), min_size=1, max_size=4)


def at(place: tuple[str, int], size: int) -> int:
    """Offset of a place in a file of this size."""
    kind, number = place
    offset = {'start': number, 'end': size - number, 'share': size * number // 10**6}[kind]
    return min(max(offset, 0), max(size - 1, 0))


def edit(content: bytes, edits: list[Edit]) -> bytes:
    """Apply edits one after the other."""
    for kind, place, *values in edits:
        offset = at(place, len(content))
        head, tail = content[:offset], content[offset:]
        if kind == 'flip':
            tail = bytes([tail[0] ^ 1 << values[0]]) + tail[1:] if tail else b''
        elif kind == 'cut':
            tail = b''
        elif kind == 'zero':
            tail = b'\0' * min(values[0], len(tail)) + tail[values[0] :]
        elif kind == 'write':
            tail = (values[0] + tail[len(values[0]) :])[: len(tail)]
        elif kind == 'swap':
            content = swap(content, offset, at(values[0], len(content)), values[1])
            continue
        elif kind == 'number':
            number = struct.pack(values[1], values[0] % 256 ** struct.calcsize(values[1]))
            tail = number + tail[len(number) :]
        elif kind == 'insert':
            tail = values[0] + tail
        elif kind == 'repeat':
            tail = tail[: values[0]] * values[1] + tail
        content = head + tail
    return content


def swap(content: bytes, first: int, second: int, length: int) -> bytes:
    """Exchange two stretches that do not overlap; otherwise change nothing."""
    first, second = sorted((first, second))
    if first + length > second or second + length > len(content):
        return content
    a, b = content[first : first + length], content[second : second + length]
    return content[:first] + b + content[first + length : second] + a + content[second + length :]


# Values of JSON that nobody expects.
ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1.5,
        float('nan'),
        float('inf'),
        10**18,
        -(10**18),
        '',
        '../x',
        'a\0b',
        '\x1b[31m',
        [],
        {},
        [[]],
    ]
    + [[1, 2], {'a': 1}, [None], ['x'] * 3, 'NaN', '/dev/zero', 2**63, [10**9] * 4]
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(['replace', 'remove', 'twice']), st.integers(0, 10**6), ODD), min_size=1, max_size=3
)


def change(value: Any, changes: list[Edit]) -> Any:
    """Replace, remove or double nodes of a nested value of dicts and lists; the value itself stays as it is."""
    value = copy.deepcopy(value)
    for kind, number, odd in changes:
        nodes = list(nodes_of(value))
        if not nodes:
            return value
        parent, key = nodes[number % len(nodes)]
        if kind == 'replace':
            parent[key] = copy.deepcopy(odd)
        elif kind == 'remove':
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
    return value


def nodes_of(value: Any) -> Any:
    """Every (parent, key) of a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        yield value, key
        yield from nodes_of(part)


def as_json(value: Any) -> str:
    """JSON as Python writes it, with NaN."""
    return json.dumps(value, default=str)


def examples(share: float) -> settings:
    """Let a test whose examples take long try this share of the profile's, at least two, and not simplify what fails."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=max(2, round(share * settings().max_examples)), phases=phases)
