"""Detect the format of a state dict, and where in it the network is, from the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mkd_plugin.checkpoint.formats.rules import Format
from mkd_plugin.checkpoint.formats.tables import FORMATS
from mkd_plugin.checkpoint.read import CheckpointError

# Default among several networks in a file: the student before its teachers, DINO's teacher, and MoCo v3's base encoder, as
# in their authors' own evaluation.
DEFAULT_PREFIXES = ('', 'backbone.', 'teacher.backbone.', 'base_encoder.')
COMPILE_PREFIX = '_orig_mod.'
MAX_NETWORKS = 100  # in one file

# Networks of other families, and a regular expression that a name of theirs contains.
OTHERS = {
    'torchvision ViT': r'^encoder\.layers\.encoder_layer_0\.',
    'ResNet': r'(^|\.)layer1\.0\.conv1\.',
    'Swin Transformer': r'(layers|stages)\.0\.blocks\.0\.att.*relative_position_bias_table',
    'ConvNeXt': r'stages\.0\.([a-z]+\.)?0\.(conv_dw|dwconv|depthwise_conv)\.',
    'language model': r'(^|\.)(embed_tokens|wte)\.weight',
}


class DetectedNetwork(NamedTuple):
    """A network in a state dict: the format and the prefix of its names."""

    format: Format
    prefix: str

    def inside(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select the network's tensors, by their names without the prefix."""
        start = self.prefix
        return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}


def strip_compile_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove from the names what ``torch.compile`` inserts."""
    return {name.replace(COMPILE_PREFIX, ''): tensor for name, tensor in weights.items()}


def find_networks(names: Collection[str]) -> list[DetectedNetwork]:
    """Find every network in a known format. Raises CheckpointError if there are suspiciously many."""
    remaining = set(names)
    networks = []
    for entry in FORMATS.values():
        candidates = sorted(name for name in remaining if name.endswith(entry.mark))
        if len(candidates) > MAX_NETWORKS:
            raise CheckpointError(f'It holds more than {MAX_NETWORKS} networks: {len(candidates)} with {entry.mark}.')
        for name in candidates:
            prefix = name.removesuffix(entry.mark)
            inner = [other.removeprefix(prefix) for other in names if other.startswith(prefix)]
            complete = all(any(re.fullmatch(pattern, other) for other in inner) for pattern in entry.also)
            if complete and (not prefix or prefix.endswith('.')):
                remaining.discard(name)  # a tensor belongs to one network
                networks.append(DetectedNetwork(entry, prefix))
    return networks


def looks_like(names: Collection[str]) -> str | None:
    """Say of which other family a network is, as far as its names tell."""
    return next((title for title, mark in OTHERS.items() if any(re.search(mark, name) for name in names)), None)


def find_network(weights: Mapping[str, Tensor], source: str | Path, prefix: str | None = None) -> DetectedNetwork:
    """Find the network to load: the one under ``prefix``, by default one of ``DEFAULT_PREFIXES``."""
    names = [name for name in weights if prefix is None or name.startswith(prefix)]
    networks = find_networks(names)
    if not networks:
        where = '' if prefix is None else f" under the prefix '{prefix}'"
        family = f', but one that looks like: {title}' if (title := looks_like(names)) else ''
        raise CheckpointError(
            f'{source} holds no network of a known format{where}{family}. Known formats: '
            f'{"; ".join(entry.title for entry in FORMATS.values())}. The first ten of its {len(weights)} names are '
            f'{list(weights)[:10]}. A network of another family can be a teacher through TimmTeacher or GeneratorTeacher.'
        )
    if len(networks) == 1:
        return networks[0]
    for default in DEFAULT_PREFIXES if prefix is None else (prefix,):
        chosen = [entry for entry in networks if default in (entry.prefix, entry.prefix.replace('module.', ''))]
        if len(chosen) == 1:
            return chosen[0]
    choices = ', '.join(f"'{entry.prefix}' ({entry.format.title})" for entry in networks)
    raise CheckpointError(f'{source} holds several networks. Choose one with prefix=…: {choices}.')
