"""Taps: named features of a transformer.

========================  ================================================================================
``input:i``               input tokens of block i (``input:0`` are the embeddings)
``block:i``               raw output of block i, before any final norm
``mean:last-k``           mean of the raw outputs of the last k blocks
``attention:i``           attention output of block i (its residual update, before stochastic depth)
``qkv:i``                 concatenated queries, keys and values of block i
``relation:i``            token relations Q·Kᵀ per head of block i, unscaled (Hybrid Distill)
``logit:i``               attention logits Q·Kᵀ / √K per head of block i, without a relative position bias
``value:i``               value relations V·Vᵀ / √K per head of block i (TinyMIM, MiniLM v2)
``output``                tokens after the last block and the final norm
``projected``             ``output`` after the network's projection (CLIP)
========================  ================================================================================

With rotary positions, queries and keys are those after their rotation. ``i`` counts from 0; negative values count from the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mkd_plugin.models.vit.attention import AttentionOutput
from mkd_plugin.models.vit.block import DropPath
from mkd_plugin.models.vit.relative import RelativePositionBias
from mkd_plugin.structures import QueryKey, TapValue, Tokens

INNER = ('attention', 'qkv', 'relation', 'logit', 'value')


@dataclass(frozen=True)
class Tap:
    """A parsed tap."""

    name: str  #: The tap's name in the config
    kind: str  #: 'tokens', 'mean', 'output', 'projected' or one of ``INNER``
    position: int  #: Number of blocks that run before the tap is read; for ``INNER``, the index of its block
    first: int = 0  #: For 'mean', the first position of the average

    @property
    def inner(self) -> bool:
        """Whether the tap is read inside a block rather than between two blocks."""
        return self.kind in INNER


def parse_tap(name: str, depth: int) -> Tap:
    """Parse the name of a tap for a network of ``depth`` blocks.

    At depth 0, ``block:-1`` stands for the embeddings (dBOT's teacher 0).

    Raises:
        ValueError: The name is not a tap, or the block is out of range.
    """
    if name in ('output', 'projected'):
        return Tap(name, name, depth)
    mean = re.fullmatch(r'mean:last-([0-9]+)', name)
    if mean:
        count = int(mean[1])
        if not 1 <= count <= depth:
            raise ValueError(
                f"Tap '{name}' is out of range: the network has {depth} blocks, so k must lie in [1, {depth}]."
            )
        return Tap(name, 'mean', depth, first=depth - count + 1)
    found = re.fullmatch(rf'(input|block|{"|".join(INNER)}):(-?[0-9]+)', name)
    if found is None:
        raise ValueError(
            f"Unknown tap '{name}': use 'output', 'projected', 'block:i', 'input:i', 'mean:last-k', 'attention:i', 'qkv:i', "
            "'relation:i', 'logit:i' or 'value:i' (i may be negative)."
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


def end_at_one_block(taps: Sequence[Tap]) -> bool:
    """Whether all taps read the output of one block, so that its unread tokens can be skipped."""
    return len({tap.position for tap in taps}) == 1 and all(
        not tap.inner and tap.kind != 'mean' and tap.position > 0 for tap in taps
    )


class TransformerParts(Protocol):
    """Parts of a network that taps read."""

    layers: nn.ModuleList  #: The blocks
    ln1: nn.Module
    proj: nn.Linear | None
    rel_pos_bias: RelativePositionBias | None
    stream: nn.Module  #: Sets the type of the residual stream
    drop_path: DropPath


def run_blocks(
    network: TransformerParts,
    x_BND: Tensor,
    taps: Sequence[Tap],
    rows_BR: Tensor | None = None,
    turns_BNK: Tensor | None = None,
) -> dict[str, TapValue]:
    """Run a ViT's blocks up to the highest tap and read all taps.

    Args:
        network: The ViT.
        x_BND: Input tokens of the first block.
        taps: What to read.
        rows_BR: Tokens that the last block computes; None for all.
        turns_BNK: Cosines and sines of rotary positions.
    """
    values: dict[str, TapValue] = {}
    bias_1HNN = None if network.rel_pos_bias is None else network.rel_pos_bias()
    sums: dict[str, Tensor] = {}
    x_BND = network.stream(x_BND)
    kept = network.drop_path(x_BND)
    last = max(tap.position for tap in taps)
    for position in range(last + 1):
        for tap in taps:
            if tap.kind == 'mean' and tap.first <= position:
                sums[tap.name] = sums[tap.name] + x_BND if tap.name in sums else x_BND
            if tap.position == position and not tap.inner:
                values[tap.name] = read_between(network, tap, x_BND, sums)
        inner = [tap for tap in taps if tap.inner and tap.position == position]
        if position < last:
            rows = rows_BR if position == last - 1 else None
            x_BND, attention = network.layers[position](x_BND, rows, bias_1HNN, kept[position], turns_BNK)
        elif inner:
            block: Any = network.layers[position]
            attention = block.stop_inside(x_BND, bias_1HNN, turns_BNK, {tap.kind for tap in inner})
        values.update({tap.name: read_inside(tap, attention) for tap in inner})
    return values


def read_between(network: TransformerParts, tap: Tap, x_BND: Tensor, sums: dict[str, Tensor]) -> Tokens:
    """Read a tap between two blocks."""
    if tap.kind == 'mean':
        return Tokens(sums.pop(tap.name) / (tap.position - tap.first + 1))
    if tap.kind == 'tokens':
        return Tokens(x_BND)
    output_BND = network.ln1(x_BND)
    return Tokens(output_BND if network.proj is None or tap.kind == 'output' else network.proj(output_BND))


def read_inside(tap: Tap, attention: AttentionOutput) -> TapValue:
    """Read a tap inside a block."""
    if tap.kind == 'attention':
        assert attention.update_BRD is not None
        return Tokens(attention.update_BRD)
    if tap.kind == 'qkv':
        assert attention.v_BHNK is not None
        parts = (attention.q_BHRK, attention.k_BHNK, attention.v_BHNK)
        return Tokens(torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=-1))
    if tap.kind == 'value':
        assert attention.v_BHNK is not None
        return QueryKey(attention.v_BHNK, attention.v_BHNK, attention.v_BHNK.shape[-1] ** -0.5)
    relation = QueryKey(attention.q_BHRK, attention.k_BHNK)
    return relation if tap.kind == 'relation' else replace(relation, scale=relation.q_BHNK.shape[-1] ** -0.5)
