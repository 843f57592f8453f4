"""Taps: the places of a transformer whose features can be read.

========================  ================================================================================
``input:i``               tokens that enter block i (``input:0`` are the embeddings)
``block:i``               raw output of block i, before any final norm
``relation:i``            token relations Q·Kᵀ per head of block i (Hybrid Distill)
``output``                tokens after the last block and the final norm
========================  ================================================================================

``i`` counts from 0; negative values count from the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ['Tap', 'end_at_one_block', 'parse_tap']


@dataclass(frozen=True)
class Tap:
    """A parsed tap.

    Attributes:
        name: As it was written.
        kind: 'tokens', 'relation' or 'output'.
        position: How many blocks have run when the tap can be read; for relations, the block they belong to.
    """

    name: str
    kind: str
    position: int


def parse_tap(name: str, depth: int) -> Tap:
    """Read a tap's name for a network of ``depth`` blocks.

    In a network cut to depth 0 ``block:-1`` is what enters its first block: dBOT's teacher 0 of depth 0.

    Raises:
        ValueError: The name is not a tap, or the block is out of range.
    """
    if name == 'output':
        return Tap(name, 'output', depth)
    found = re.fullmatch(r'(input|block|relation):(-?[0-9]+)', name)
    if found is None:
        raise ValueError(
            f"Unknown tap '{name}': use 'output', 'block:i', 'input:i' or 'relation:i' (i may be negative)."
        )
    kind, number = found[1], int(found[2])
    index = number + depth if number < 0 else number
    embeddings = depth == 0 and (kind, number) in (('block', -1), ('input', 0))
    if not (0 <= index < depth or embeddings):
        raise ValueError(
            f"Tap '{name}' is out of range: the network has {depth} blocks, so i must lie in [−{depth}, {depth})."
        )
    if kind == 'relation':
        return Tap(name, 'relation', index)
    return Tap(name, 'tokens', index + (kind == 'block'))


def end_at_one_block(taps: Sequence[Tap]) -> bool:
    """Whether nothing is read but the tokens that the last block needed gives: then it need not compute the others."""
    return len({tap.position for tap in taps}) == 1 and all(tap.kind != 'relation' and tap.position > 0 for tap in taps)
