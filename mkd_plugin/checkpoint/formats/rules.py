"""Rules that map a foreign tensor to ours and back, and the formats made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
PARTS = re.compile(r'\{([^{}]*\|[^{}]*)\}')
PLACEHOLDERS = {r'\{i\}': r'(?P<i>\d+)', r'\{p\}': r'(?P<p>weight|bias)'}


class Layout(NamedTuple):
    """How the shape of a foreign tensor differs from ours, as two inverse functions."""

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


def add_leading_axes(tensor: Tensor) -> Tensor:
    """Reshape a token (D,) to (1, 1, D) or a position table (N, D) to (1, N, D); keep other shapes."""
    return tensor.view((1,) * (3 - tensor.ndim) + tensor.shape) if tensor.ndim < 3 else tensor


def drop_leading_axes(tensor: Tensor) -> Tensor:
    """Invert :func:`add_leading_axes`."""
    return tensor[0, 0] if tensor.shape[1] == 1 else tensor[0]


SAME = Layout(lambda tensor: tensor, lambda tensor: tensor)
FLAT = Layout(add_leading_axes, drop_leading_axes)
TRANSPOSED = Layout(Tensor.t, Tensor.t)  # a matrix that is multiplied from the right


@dataclass(frozen=True)
class Rule:
    """One line of a format's table."""

    #: Pattern of the foreign name, with the placeholders ``{i}`` for a number and ``{p}`` for weight or bias.
    #: ``{query|key|value}`` are the names of queries, keys and values; an empty name for keys means zeros (BEiT has no
    #: bias there: it would add the same value to all logits of a query, which does not change the output).
    #: ``{gate|value}`` are likewise two tensors that are one in our network.
    theirs: str
    ours: str  #: Pattern of our name
    layout: Layout = SAME  #: How the foreign tensor's shape differs

    @cached_property
    def names(self) -> tuple[str | None, ...]:
        """Patterns of the foreign names: one, or those of two or three parts."""
        parts = PARTS.search(self.theirs)
        if parts is None:
            return (self.theirs,)
        return tuple(self.theirs.replace(parts[0], name) if name else None for name in parts[1].split('|'))

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str] | None, ...]:
        return tuple(None if name is None else re.compile(regex_of(name)) for name in self.names)

    @cached_property
    def _ours(self) -> re.Pattern[str]:
        return re.compile(regex_of(self.ours))

    def match_theirs(self, name: str) -> tuple[str, int] | None:
        """Return our name of a foreign tensor and the index of the pattern that matched; None if none did."""
        for index, pattern in enumerate(self.patterns):
            if pattern is not None and (match := pattern.fullmatch(name)):
                return self.ours.format(**match.groupdict()), index
        return None

    def to_theirs(self, name: str, tensor: Tensor) -> Tensors | None:
        """Convert one of our tensors; None if the rule does not apply to its name."""
        match = self._ours.fullmatch(name)
        if match is None:
            return None
        tensors = [self.layout.to_theirs(tensor)] if len(self.names) == 1 else tensor.chunk(len(self.names))
        pairs = zip(self.names, tensors, strict=True)
        return {theirs.format(**match.groupdict()): part for theirs, part in pairs if theirs is not None}


def regex_of(pattern: str) -> str:
    """Translate a pattern with placeholders to a regular expression."""
    expression = re.escape(pattern)
    for placeholder, group in PLACEHOLDERS.items():
        expression = expression.replace(placeholder, group)
    return expression


@dataclass
class Converted:
    """Result of importing a foreign state dict."""

    tensors: Tensors = field(default_factory=dict)  #: By our names
    #: Foreign names that are known and have no place in our network, such as a head's
    dropped: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  #: Foreign names that no rule matches


def do_nothing(converted: Any) -> None:
    """Leave tensors unchanged: the default of a format's last and first step."""


@dataclass(frozen=True)
class Format:
    """One way to name a ViT's tensors."""

    name: str  #: Key of ``FORMATS``
    title: str  #: Name for people
    mark: str  #: A name that every such state dict has; the text before it is the network's prefix
    rules: tuple[Rule, ...]  #: The table. If several rules have the same ``ours``, export uses the first.
    also: tuple[str, ...] = ()  #: Regular expressions of further names that must exist under this prefix
    #: Regular expressions of the beginnings of names that are known and have no place in our network
    dropped: tuple[str, ...] = ()
    adjust: Callable[[Converted], None] = do_nothing  #: Last step of the import
    #: Inverse of ``adjust`` and first step of the export, on tensors in our names; raises ValueError if the format
    #: cannot represent the network
    restore: Callable[[Tensors], None] = do_nothing

    def to_ours(self, weights: Mapping[str, Tensor]) -> Converted:
        """Import a state dict. Tensors are not copied unless queries, keys and values must be concatenated."""
        converted = Converted()
        parts: dict[str, tuple[int, dict[int, str]]] = {}
        for name, tensor in weights.items():
            found = next(((rule, *match) for rule in self.rules if (match := rule.match_theirs(name))), None)
            if found is None:
                known = any(re.match(pattern, name) for pattern in self.dropped)
                (converted.dropped if known else converted.unknown).append(name)
                continue
            rule, ours, index = found
            if len(rule.names) == 1:
                converted.tensors[ours] = rule.layout.to_ours(tensor)
            else:
                parts.setdefault(ours, (len(rule.names), {}))[1][index] = name
        for ours, (count, found_parts) in parts.items():
            lacking = set(range(count)) - found_parts.keys()
            if not lacking or (lacking == {1} and count == 3 and ours.endswith('.bias')):
                zeros = torch.zeros_like(weights[found_parts[0]])
                tensors = [weights[found_parts[i]] if i in found_parts else zeros for i in range(count)]
                converted.tensors[ours] = torch.cat(tensors)
            else:
                converted.unknown += found_parts.values()
        self.adjust(converted)
        return converted

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
        """Export tensors in our names; also return the names that the format cannot represent."""
        tensors = dict(tensors)
        self.restore(tensors)
        exported: Tensors = {}
        left = []
        for name, tensor in tensors.items():
            found = next((hit for rule in self.rules if (hit := rule.to_theirs(name, tensor)) is not None), None)
            if found is None:
                left.append(name)
            else:
                exported.update(found)
        return exported, left
