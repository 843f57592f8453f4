"""Which format a state dict is in, and where in it the network lies, judged by its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mkd_plugin.checkpoint.formats.huggingface import HF_BEIT, HF_CLIP, HF_CLIP_TOWER, HF_DINOV2, HF_MAE, HF_VIT
from mkd_plugin.checkpoint.formats.own import CLIP, MKD, MMPRETRAIN_BEIT
from mkd_plugin.checkpoint.formats.rules import Format
from mkd_plugin.checkpoint.formats.timm_like import BEIT, DBOT, DINOV2, DMAE, MAE, SLIP, TIMM

# The most particular first: what they have in common with those behind them decides nothing.
FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        *(DMAE, DBOT, MAE, SLIP, BEIT, DINOV2, TIMM),
        *(MMPRETRAIN_BEIT, MKD),
        CLIP,
        *(HF_MAE, HF_BEIT, HF_DINOV2, HF_VIT, HF_CLIP, HF_CLIP_TOWER),
    )
}

# Of several networks in a file: the student before its teachers; of DINO the teacher and of MoCo v3 the encoder that is
# trained, as their authors' own evaluation takes them.
PREFERRED = ('', 'backbone.', 'teacher.backbone.', 'base_encoder.')
COMPILED = '_orig_mod.'
ENOUGH = 4  # names that fit in make a guess


class Found(NamedTuple):
    """A network in a state dict."""

    format: Format
    prefix: str


def without_wrapper(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same without what ``torch.compile`` puts into names."""
    return {name.replace(COMPILED, ''): tensor for name, tensor in weights.items()}


def find_networks(names: Iterable[str]) -> list[Found]:
    """Every network whose format is known."""
    every = set(names)
    found: dict[str, Found] = {}  # by the full name of the mark: a tensor is in one network
    for entry in FORMATS.values():
        for mark in sorted(name for name in every - found.keys() if name.endswith(entry.mark)):
            prefix = mark[: -len(entry.mark)]
            if (not prefix or prefix.endswith('.')) and has_all(every, prefix, entry.also):
                found[mark] = Found(entry, prefix)
    return list(found.values())


def has_all(names: set[str], prefix: str, patterns: Sequence[str]) -> bool:
    """Whether each of the expressions matches a name under the prefix."""
    inner = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    return all(any(re.fullmatch(pattern, name) for name in inner) for pattern in patterns)


def guess_network(names: Sequence[str]) -> Found | None:
    """The network of a file that lacks its marks, by most names that fit in; so that it can be said what is missing."""
    hits: Counter[tuple[str, str]] = Counter()
    for entry in FORMATS.values():
        patterns = [re.compile(rf'(|.*\.){expression}') for rule in entry.rules for expression in rule.expressions]
        for name in names:
            matches = (pattern.fullmatch(name) for pattern in patterns)
            hits.update({(entry.name, match[1]) for match in matches if match})
    if not hits or max(hits.values()) < ENOUGH:
        return None
    most = max(hits.values())
    name, prefix = [key for key, count in hits.items() if count == most][-1]
    return Found(FORMATS[name], prefix)


def find_network(weights: Mapping[str, Tensor], source: str | Path, prefix: str | None = None) -> Found:
    """The network to load.

    Args:
        weights: The file's state dict.
        source: The file, for messages.
        prefix: Where the network is, if there are several; None takes the student, and of reference code's two networks
            the one that its authors evaluate.

    Raises:
        ValueError: No format is recognised, or several networks are there and none is the obvious one.
    """
    names = [name for name in weights if prefix is None or name.startswith(prefix)]
    networks = find_networks(names)
    if not networks:
        guess = guess_network(names)
        if guess is None:
            raise ValueError(unknown_format(weights, source, prefix))
        return guess
    wanted = PREFERRED if prefix is None else (prefix,)
    for place in wanted if len(networks) > 1 else ():
        chosen = [entry for entry in networks if place in (entry.prefix, entry.prefix.replace('module.', ''))]
        if len(chosen) == 1:
            return chosen[0]
    if len(networks) > 1:
        listed = ', '.join(f"'{entry.prefix}' ({entry.format.title})" for entry in networks)
        raise ValueError(f'{source} holds several networks. Say which one with prefix=…: {listed}.')
    return networks[0]


def unknown_format(weights: Mapping[str, Tensor], source: str | Path, prefix: str | None) -> str:
    """What to say about a state dict that nothing recognises."""
    where = '' if prefix is None else f" under the prefix '{prefix}'"
    known = '; '.join(entry.title for entry in FORMATS.values())
    return (
        f'{source} holds no network of a known format{where}. Known are: {known}. The first ten of its {len(weights)} names '
        f'are {list(weights)[:10]}. A network of another family can be a teacher through TimmTeacher or GeneratorTeacher.'
    )
