"""Read the formats' tables of names, ``formats.yml``, and finish what names and layouts alone do not convert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from mkd_plugin.checkpoint.formats.rules import FLAT, SAME, TRANSPOSED, Converted, Format, Rule, Tensors, do_nothing

RELATIVE_TABLE = 'rel_pos_bias.relative_position_bias_table'
PATCH_WEIGHT, PATCH_BIAS = 'patch_embed.projection.weight', 'patch_embed.projection.bias'
UNUSED = 'unused_mask_token'
LAYOUTS = {'same': SAME, 'flat': FLAT, 'transposed': TRANSPOSED}


def add_patch_bias(converted: Converted) -> None:
    """Add a zero bias to CLIP's patch embedding: networks with a norm before the first block have none, ours has one."""
    tensors = converted.tensors
    if 'pre_norm.weight' in tensors and PATCH_WEIGHT in tensors and PATCH_BIAS not in tensors:
        weight = tensors[PATCH_WEIGHT]
        tensors[PATCH_BIAS] = weight.new_zeros(weight.shape[0])


def remove_patch_bias(tensors: Tensors) -> None:
    """Invert :func:`add_patch_bias`. Raises ValueError if the bias is not zero because the network was trained here."""
    if 'pre_norm.weight' not in tensors:
        return
    bias = tensors.pop(PATCH_BIAS, None)
    if bias is not None and bool(bias.any()):
        raise ValueError(
            'In this format, a network with a norm before the first block has no bias in the patch embedding, and this one '
            'has a bias that is not zero (patch_embed.projection.bias).'
        )


def adjust_timm(converted: Converted) -> None:
    """Add a zero position for cls where only patches have one, and tell CLIP's projection from a classifier.

    timm stores the projection as a head with a zero bias, which no trained classifier has.
    """
    tensors = converted.tensors
    add_patch_bias(converted)
    if 'register_tokens' in tensors and 'pos_embed' in tensors:
        positions_1LD = tensors['pos_embed']
        tensors['pos_embed'] = torch.cat([torch.zeros_like(positions_1LD[:, :1]), positions_1LD], dim=1)
    head = {name: tensors.pop(name) for name in ('head.weight', 'head.bias') if name in tensors}
    if 'pre_norm.weight' in tensors and 'head.weight' in head and not ('head.bias' in head and head['head.bias'].any()):
        tensors['proj.weight'] = head['head.weight']
    else:
        converted.dropped += head


def restore_timm(tensors: Tensors) -> None:
    """Invert :func:`adjust_timm`: with registers, add its position to cls; store the projection as a head."""
    remove_patch_bias(tensors)
    if 'register_tokens' in tensors:
        positions_1ND = tensors['pos_embed']
        tensors['cls_token'] = tensors['cls_token'] + positions_1ND[:, :1]
        tensors['pos_embed'] = positions_1ND[:, 1:]
    if 'proj.weight' in tensors:
        weight = tensors['head.weight'] = tensors.pop('proj.weight')
        tensors['head.bias'] = weight.new_zeros(weight.shape[0])


def clear_key_bias(converted: Converted) -> None:
    """Make the biases of keys 0, which DINOv3 masks, and add biases of 0 where its authors' or timm's network has none."""
    tensors = converted.tensors
    for name in [name for name in tensors if name.endswith('attn.qkv.weight')]:
        bias = f'{name.removesuffix("weight")}bias'
        zeros = tensors[name].new_zeros(len(tensors[name]))
        query, key, value = tensors.get(bias, zeros).chunk(3)
        tensors[bias] = torch.cat([query, torch.zeros_like(key), value])


def drop_mask_token(converted: Converted) -> None:
    """Drop the mask token of DINOv2's classes, which is only used in their own pre-training."""
    if converted.tensors.pop(UNUSED, None) is not None:
        converted.dropped.append('embeddings.mask_token')


def add_mask_token(tensors: Tensors) -> None:
    """Add a mask token of zeros, the initial value in the classes."""
    tensors[UNUSED] = torch.zeros_like(tensors['cls_token'][0])


# The last step of an import, and its inverse, which is the first step of an export.
ADJUSTMENTS: dict[str, tuple[Callable[[Converted], None], Callable[[Tensors], None]]] = {
    'nothing': (do_nothing, do_nothing),
    'patch_bias': (add_patch_bias, remove_patch_bias),
    'patch_bias_kept': (add_patch_bias, do_nothing),  # our own network has the bias
    'timm': (adjust_timm, restore_timm),
    'keys': (clear_key_bias, do_nothing),
    'mask_token': (drop_mask_token, add_mask_token),
}


def read_rules(entries: Iterable[dict[str, Any]], theirs: str = '', ours: str = '') -> Iterator[Rule]:
    """Read the rules of a format, whose names begin with ``theirs`` and ``ours``."""
    for entry in entries:
        if 'rules' in entry:
            yield from read_rules(entry['rules'], theirs + entry.get('theirs', ''), ours + entry.get('ours', ''))
            continue
        for name, own in entry.items():
            own, layout = own if isinstance(own, list) else (own, 'same')
            yield Rule(theirs + name, ours + own, LAYOUTS[layout])


def read_format(name: str, entry: dict[str, Any]) -> Format:
    adjust, restore = ADJUSTMENTS[entry.get('adjust', 'nothing')]
    return Format(
        name,
        entry['title'],
        mark=entry['mark'],
        also=tuple(entry['also']),
        rules=tuple(read_rules(entry['rules'])),
        dropped=tuple(entry.get('dropped', ())),
        adjust=adjust,
        restore=restore,
    )


_FILE = Path(__file__).with_name('formats.yml')
_ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(_FILE.read_text('utf-8'))['formats']
EXPORTS = {name: read_format(name, entry) for name, entry in _ENTRIES.items()}
# In the order in which they are tried on a file.
FORMATS = {name: entry for name, entry in EXPORTS.items() if not _ENTRIES[name].get('export_only')}
