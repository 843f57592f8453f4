"""What changes in a tensor when it changes its format: nothing, its leading axes, its sides, or three become one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """How a foreign tensor is shaped, as a pair of functions that undo each other."""

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


def unflatten(tensor: Tensor) -> Tensor:
    """A token (D,) or a table of positions (N, D) → (1, 1, D) or (1, N, D); other shapes are kept."""
    return tensor.view((1,) * (3 - tensor.ndim) + tensor.shape) if tensor.ndim < 3 else tensor


def flatten(tensor: Tensor) -> Tensor:
    """The inverse of :func:`unflatten`: a token loses both leading axes, a table the first."""
    return tensor[0, 0] if tensor.shape[1] == 1 else tensor[0]


def transpose(tensor: Tensor) -> Tensor:
    """A matrix that stands on the right of a product ↔ one of a linear layer."""
    return tensor.t()


SAME = Form(lambda tensor: tensor, lambda tensor: tensor)
FLAT = Form(unflatten, flatten)
TRANSPOSED = Form(transpose, transpose)


def join_qkv(query: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
    """Weights or biases of queries, keys and values, one behind the other; zeros if there are none of keys."""
    return torch.cat([query, torch.zeros_like(query) if key is None else key, value])


def split_qkv(joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of :func:`join_qkv`."""
    query, key, value = joined.chunk(3)
    return query, key, value


Tensors = dict[str, Tensor]
HOLES = {r'\{i\}': r'(?P<i>\d+)', r'\{p\}': r'(?P<p>weight|bias)'}


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        theirs: Pattern of the foreign name, or of the three names of queries, keys and values; None for keys stands for
            zeros (BEiT has no bias there: it would add the same to all logits of a query, which changes no output).
        ours: Pattern of our name.
        form: How the foreign tensor is shaped.
    """

    theirs: str | tuple[str, str | None, str]
    ours: str
    form: Form = SAME

    @cached_property
    def names(self) -> tuple[str | None, ...]:
        """Patterns of the foreign names: one, or three."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def expressions(self) -> tuple[str, ...]:
        """Regular expressions of the foreign names."""
        return tuple(expression_of(name) for name in self.names if name is not None)

    @cached_property
    def _theirs(self) -> tuple[re.Pattern[str] | None, ...]:
        return tuple(None if name is None else re.compile(expression_of(name)) for name in self.names)

    @cached_property
    def _ours(self) -> re.Pattern[str]:
        return re.compile(expression_of(self.ours))

    def find_theirs(self, name: str) -> tuple[str, int] | None:
        """Our name of a foreign tensor, and which of the rule's names it is; None if the rule is about others."""
        for index, pattern in enumerate(self._theirs):
            if pattern is not None and (match := pattern.fullmatch(name)):
                return self.ours.format(**match.groupdict()), index
        return None

    def to_theirs(self, name: str, tensor: Tensor) -> Tensors | None:
        """The foreign tensors of one of ours; None if the rule is about others."""
        match = self._ours.fullmatch(name)
        if match is None:
            return None
        tensors = [self.form.to_theirs(tensor)] if len(self.names) == 1 else split_qkv(tensor)
        pairs = zip(self.names, tensors, strict=True)
        return {theirs.format(**match.groupdict()): part for theirs, part in pairs if theirs is not None}


def expression_of(pattern: str) -> str:
    """The regular expression of a pattern's names."""
    expression = re.escape(pattern)
    for hole, group in HOLES.items():
        expression = expression.replace(hole, group)
    return expression


def under(module: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The same rules for a network that lies in a module of the foreign file."""

    def inside(name: str | None) -> str | None:
        return None if name is None else module + name

    moved = []
    for rule in rules:
        names = tuple(inside(name) for name in rule.names)
        moved.append(Rule(names[0] if len(names) == 1 else names, rule.ours, rule.form))  # type: ignore[arg-type]
    return tuple(moved)


@dataclass
class Converted:
    """What came of a foreign state dict.

    Attributes:
        tensors: In our names.
        dropped: Foreign names that are known and have no place in our network, those of a head for example.
        unknown: Foreign names that no rule knows.
    """

    tensors: Tensors = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def nothing(done: Any) -> None:
    """No last step."""


@dataclass(frozen=True)
class Format:
    """A way of naming a ViT's tensors.

    Attributes:
        name: Short name.
        title: For people.
        mark: A name that such a state dict has; what stands before it is the network's prefix.
        also: Expressions of further names under this prefix, all of which must be there too.
        rules: The table. Where two rules have the same name of ours, the first is the one that is written.
        dropped: Expressions of how names begin that are known and have no place in our network.
        adjust: Last step of the import, on what came of it.
        restore: Its inverse and the first step of the export, on tensors in our names; raises ValueError if the network
            has what the format cannot have.
    """

    name: str
    title: str
    mark: str
    rules: tuple[Rule, ...]
    also: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    adjust: Callable[[Converted], None] = nothing
    restore: Callable[[Tensors], None] = nothing

    def to_ours(self, weights: Mapping[str, Tensor]) -> Converted:
        """Foreign names → ours. Tensors are those of ``weights`` wherever nothing has to be joined."""
        done = Converted()
        parts: dict[str, dict[int, str]] = {}
        for name, tensor in weights.items():
            found = next(((rule, *hit) for rule in self.rules if (hit := rule.find_theirs(name))), None)
            if found is None:
                known = any(re.match(pattern, name) for pattern in self.dropped)
                (done.dropped if known else done.unknown).append(name)
                continue
            rule, ours, index = found
            if len(rule.names) == 1:
                done.tensors[ours] = rule.form.to_ours(tensor)
            else:
                parts.setdefault(ours, {})[index] = name
        for ours, three in parts.items():
            if {0, 2} <= three.keys() and (1 in three or ours.endswith('.bias')):
                key = weights[three[1]] if 1 in three else None
                done.tensors[ours] = join_qkv(weights[three[0]], key, weights[three[2]])
            else:
                done.unknown += three.values()
        self.adjust(done)
        return done

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
        """Our names → foreign ones, and those of ours that the format has no name for."""
        tensors = dict(tensors)
        self.restore(tensors)
        done: Tensors = {}
        left = []
        for name, tensor in tensors.items():
            found = next((hit for rule in self.rules if (hit := rule.to_theirs(name, tensor)) is not None), None)
            if found is None:
                left.append(name)
            else:
                done.update(found)
        return done, left
