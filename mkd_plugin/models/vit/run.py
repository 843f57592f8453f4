"""Running the blocks of a ViT up to the last tap, and reading the taps (shape legend: ``mkd_plugin/structures.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from mkd_plugin.models.vit.attention import AttentionOutput
from mkd_plugin.models.vit.block import Block
from mkd_plugin.models.vit.taps import Tap
from mkd_plugin.structures import TapValue, Tokens

if TYPE_CHECKING:
    from mkd_plugin.models.vit.vit import VisionTransformer


def run_blocks(
    network: VisionTransformer, x_BND: Tensor, taps: Sequence[Tap], rows_BR: Tensor | None = None
) -> dict[str, TapValue]:
    """Run up to the highest tap and no further; the last of these blocks for ``rows_BR`` only.

    Args:
        network: Whose blocks run.
        x_BND: Tokens that enter the first block.
        taps: What to read.
        rows_BR: The only tokens that will be read of the last block's output; None for all.
    """
    values: dict[str, TapValue] = {}
    bias_1HNN = None if network.rel_pos_bias is None else network.rel_pos_bias()
    sums: dict[str, Tensor] = {}
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
            x_BND, attention = network.layers[position](x_BND, rows, bias_1HNN)
        elif inner:
            block: Block = network.layers[position]  # type: ignore[assignment]
            attention = stop_inside(block, x_BND, bias_1HNN, {tap.kind for tap in inner})
        values.update({tap.name: read_inside(tap, attention) for tap in inner})
    return values


def read_between(network: VisionTransformer, tap: Tap, x_BND: Tensor, sums: dict[str, Tensor]) -> Tokens:
    """A tap between two blocks."""
    if tap.kind == 'mean':
        return Tokens(sums.pop(tap.name) / (tap.position - tap.first + 1))
    if tap.kind == 'tokens':
        return Tokens(x_BND)
    output_BND = network.ln1(x_BND)
    return Tokens(output_BND if network.proj is None or tap.kind == 'output' else network.proj(output_BND))


def stop_inside(block: Block, x_BND: Tensor, bias_1HNN: Tensor | None, kinds: set[str]) -> AttentionOutput:
    """As much of a block's attention as these kinds of taps read."""
    x_BND = block.ln1(x_BND)
    if 'attention' in kinds:
        return block.attn(x_BND, None, bias_1HNN)
    return block.attn.project(x_BND, values='qkv' in kinds)


def read_inside(tap: Tap, attention: AttentionOutput) -> TapValue:
    """A tap inside a block."""
    if tap.kind == 'attention':
        assert attention.update_BRD is not None
        return Tokens(attention.update_BRD)
    if tap.kind == 'qkv':
        return Tokens(attention.qkv_BNE())
    relation = attention.query_key()
    return relation if tap.kind == 'relation' else replace(relation, scale=relation.q_BHNK.shape[-1] ** -0.5)
