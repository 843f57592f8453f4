"""Strict loading of a ViT, with a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from torch import Tensor

from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, weights_of
from mkd_plugin.checkpoint.resize import resize_positions

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer

__all__ = ['LoadReport', 'find_prefix', 'load_backbone']


@dataclass
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: The file.
        matched: Loaded as they are.
        resized: Loaded after their grid was resized.
        missing: Of the network, not in the file.
        unexpected: In the file, not of the network.
    """

    source: str
    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f'loaded {self.source}:']
        for name in ('matched', 'resized', 'missing', 'unexpected'):
            keys = getattr(self, name)
            listed = f' ({shorten(keys)})' if keys and name != 'matched' else ''
            parts.append(f'  {name:<10} {len(keys)}{listed}')
        return '\n'.join(parts)


def shorten(keys: Sequence[str], most: int = 6) -> str:
    """The first few keys, and how many more there are."""
    rest = len(keys) - most
    return ', '.join(keys[:most]) + (f' and {rest} more' if rest > 0 else '')


def find_prefix(weights: Mapping[str, Tensor]) -> str:
    """Where the ViT is in a state dict: at the top, or the student's ``backbone.`` of a MM checkpoint."""
    return 'backbone.' if any(key.startswith('backbone.') for key in weights) else ''


def load_backbone(
    network: VisionTransformer, path: str | Path, *, prefix: str | None = None, allow_missing: Sequence[str] = ()
) -> LoadReport:
    """Load a ViT from a checkpoint of this package or of mmpretrain.

    A position table of another grid is resized as timm does it.

    Args:
        network: The network to fill.
        path: The file.
        prefix: Where the network is in the file; by itself it is looked for under ``backbone.`` and at the top. A
            stage's teacher is under ``teachers.<name>.network.``.
        allow_missing: Names that need not be in the file, beside those the network's class calls new.

    Returns:
        The report, which is also logged.

    Raises:
        ValueError: The file does not cover the network; the message says what is missing or has another shape. Or it
            holds a network with more blocks, or other attention heads.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, path)
    prefix = find_prefix(weights) if prefix is None else prefix
    if prefix and not prefix.endswith('.'):
        prefix += '.'  # the hosts take it without the dot as well
    found = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    own = network.state_dict()
    report = LoadReport(str(path))
    if 'pos_embed' in found and 'pos_embed' in own and found['pos_embed'].shape != own['pos_embed'].shape:
        found['pos_embed'] = resize_table(found['pos_embed'], network)
        report.resized.append('pos_embed')
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    report.matched = [key for key in fitting if key not in report.resized]
    report.missing = [key for key in own if key not in fitting]
    report.unexpected = [key for key in found if key not in own]
    check_coverage(report, network, weights, own, prefix, allow_missing)
    check_architecture(report, network, checkpoint)
    network.load_state_dict(fitting, strict=False)
    print_log(str(report), logger='current')
    return report


def resize_table(table_1ND: Tensor, network: VisionTransformer) -> Tensor:
    """A position table of a square grid, resized to the network's; unchanged if it is of another width."""
    side = round((table_1ND.shape[1] - network.num_prefix) ** 0.5)
    square = side**2 + network.num_prefix == table_1ND.shape[1]
    if table_1ND.shape[-1] != network.arch.width or not square:
        return table_1ND
    return resize_positions(table_1ND, (side, side), network.grid, network.num_prefix)


def check_coverage(
    report: LoadReport,
    network: VisionTransformer,
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    prefix: str,
    allow_missing: Sequence[str],
) -> None:
    """Raise ValueError unless every tensor of the network was found with its shape, or may be new."""
    may_be_new = {*allow_missing, *getattr(network, 'may_be_new', ())}
    uncovered = [key for key in report.missing if key not in may_be_new]
    if not uncovered:
        return
    there = {key: tuple(weights[prefix + key].shape) for key in uncovered if prefix + key in weights}
    reasons = [f'{key} is {shape} there and {tuple(own[key].shape)} here' for key, shape in list(there.items())[:4]]
    absent = [key for key in uncovered if key not in there]
    if absent:
        reasons.append(f'absent: {shorten(absent)}')
    arch = network.arch
    raise ValueError(
        f'{report.source} does not cover the network (width {arch.width}, {arch.depth} blocks, patch '
        f"{network.patch_size}; looked under the prefix '{prefix}'): {len(uncovered)} of {len(own)} tensors are not there. "
        f'{"; ".join(reasons)}. The file has: {shorten(list(weights))}. '
        "Check arch, patch_size and prefix (a stage's teacher is under 'teachers.<name>.network.')."
    )


def check_architecture(report: LoadReport, network: VisionTransformer, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError if the file's network has more blocks, or (where the file says so) another number of heads."""
    arch = network.arch
    blocks = (re.match(r'layers\.(\d+)\.', key) for key in report.unexpected)
    deepest = max((int(block[1]) + 1 for block in blocks if block), default=0)
    if deepest > arch.depth:
        raise ValueError(f'{report.source} holds a network of {deepest} blocks, this one has {arch.depth}. Check arch.')
    stated = provenance_of(checkpoint).get('backbone', {}).get('arch', {})
    if stated and stated['width'] == arch.width and stated['num_heads'] != arch.num_heads:
        raise ValueError(
            f'{report.source} holds a network of {stated["num_heads"]} attention heads, this one has {arch.num_heads}: '
            'its tensors would fit, and mean something else. Check arch.'
        )
