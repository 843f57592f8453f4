"""Taps: the places of a transformer whose features can be read.

========================  ================================================================================
``input:i``               tokens that enter block i (``input:0`` are the embeddings)
``block:i``               raw output of block i, before any final norm
``mean:last-k``           mean of the raw outputs of the last k blocks
``attention:i``           what the attention of block i adds to the tokens, before stochastic depth (MSA output)
``qkv:i``                 queries, keys and values of block i, one behind the other
``relation:i``            token relations Q·Kᵀ per head of block i, unscaled (Hybrid Distill)
``logit:i``               the same over √K, as the softmax reads them (without a relative position bias)
``output``                tokens after the last block and the final norm
``projected``             the same after the network's projection (CLIP)
========================  ================================================================================

``i`` counts from 0; negative values count from the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

INNER = ('attention', 'qkv', 'relation', 'logit')


@dataclass(frozen=True)
class Tap:
    """A parsed tap.

    Attributes:
        name: As it was written.
        kind: 'tokens', 'mean', 'output', 'projected' or one of ``INNER``.
        position: How many blocks have run when the tap can be read; for ``INNER``, the block they belong to.
        first: For 'mean', the first position that counts.
    """

    name: str
    kind: str
    position: int
    first: int = 0

    @property
    def inner(self) -> bool:
        """Whether it is read inside a block rather than between two."""
        return self.kind in INNER


def parse_tap(name: str, depth: int) -> Tap:
    """Read a tap's name for a network of ``depth`` blocks.

    In a network cut to depth 0 ``block:-1`` is what enters its first block: dBOT's teacher 0 of depth 0.

    Raises:
        ValueError: The name is not a tap, or the block is out of range.
    """
    if name in ('output', 'projected'):
        return Tap(name, name, depth)
    mean = re.fullmatch(r'mean:last-([0-9]+)', name)
    if mean:
        return Tap(name, 'mean', depth, first=depth - count_of(name, int(mean[1]), depth) + 1)
    found = re.fullmatch(rf'(input|block|{"|".join(INNER)}):(-?[0-9]+)', name)
    if found is None:
        raise ValueError(
            f"Unknown tap '{name}': use 'output', 'projected', 'block:i', 'input:i', 'mean:last-k', 'attention:i', 'qkv:i', "
            "'relation:i' or 'logit:i' (i may be negative)."
        )
    kind, number = found[1], int(found[2])
    index = number + depth if number < 0 else number
    embeddings = depth == 0 and (kind, number) in (('block', -1), ('input', 0))
    if not (0 <= index < depth or embeddings):
        raise ValueError(
            f"Tap '{name}' is out of range: the network has {depth} blocks, so i must lie in [−{depth}, {depth})."
        )
    if kind in INNER:
        return Tap(name, kind, index)
    return Tap(name, 'tokens', index + (kind == 'block'))


def count_of(name: str, count: int, depth: int) -> int:
    """How many blocks a mean is over. Raises ValueError if the network has not so many."""
    if not 1 <= count <= depth:
        raise ValueError(
            f"Tap '{name}' is out of range: the network has {depth} blocks, so k must lie in [1, {depth}]."
        )
    return count


def end_at_one_block(taps: Sequence[Tap]) -> bool:
    """Whether nothing is read but the tokens that the last block needed gives: then it need not compute the others."""
    return len({tap.position for tap in taps}) == 1 and all(
        not tap.inner and tap.kind != 'mean' and tap.position > 0 for tap in taps
    )
