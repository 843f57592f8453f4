"""What became of every tensor of a file, as a table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mkd_plugin.checkpoint.formats import Found
from mkd_plugin.checkpoint.infer_arch import FEATURES, anatomy, features_of

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer

ROWS = {
    'matched': 'loaded as they are',
    'resized': 'loaded after their grid was resized',
    'converted': 'of these, in another number format',
    'missing': 'of the network, not in the file',
    'dropped': 'known, and no part of this network',
    'unexpected': 'not known',
}


@dataclass
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: The file.
        format: What the file's names are of.
        prefix: Where in the file the network is.
        matched: Loaded as they are, by our names (so are resized, converted and missing ones).
        resized: Loaded after their grid was resized, or after one table was repeated for every block.
        converted: Those of both whose numbers have another format in the network.
        missing: Of the network, not in the file.
        dropped: In the file, known, and without a place in the network: heads, decoders, other networks.
        unexpected: In the file, and known to nothing.
        numbers: Which number formats were converted, as 'float16 → float32'.
    """

    source: str
    format: str = ''
    prefix: str = ''
    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> list[str]:
        """What the network got."""
        return [*self.matched, *self.resized]

    def table(self) -> Table:
        """The table for a console."""
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for column in ('tensors', 'number', 'which'):
            table.add_column(column, justify='right' if column == 'number' else 'left', overflow='fold')
        for name, meaning in ROWS.items():
            names = getattr(self, name)
            which = dict(matched='', converted=shorten(self.numbers)).get(name, shorten(names))
            table.add_row(f'{name}: {meaning}', str(len(names)), escape(which))
        return table

    def title(self) -> str:
        """The line above it."""
        place = f", under '{self.prefix}'" if self.prefix else ''
        return f'loaded {self.source} ({self.format}{place})'

    def __str__(self) -> str:
        return f'{self.title()}\n{render(self.table())}'


def render(table: Table, width: int = 140) -> str:
    """A table as plain text."""
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return '\n'.join(line.rstrip() for line in text.getvalue().splitlines())


def shorten(names: Sequence[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ', '.join(names[:most]) + (f' and {rest} more' if rest > 0 else '')


def differences(network: VisionTransformer, tensors: Mapping[str, Tensor]) -> list[str]:
    """Sizes that differ, each as 'width 768 there and 1024 here'."""
    there, here = anatomy(tensors), anatomy(network.state_dict())
    names = dict(depth='blocks', mlp='hidden width', heads='attention heads')
    return [
        f'{names.get(name, name)} {there[name]} there and {here[name]} here'
        for name in here
        if name in there and there[name] != here[name]
    ]


def check_architecture(
    source: str | Path,
    found: Found,
    network: VisionTransformer,
    tensors: Mapping[str, Tensor],
    stated: Mapping[str, Any],
) -> None:
    """Raise ValueError if the file is of a network of other sizes, or (where it says so) with another number of heads."""
    different = differences(network, tensors)
    if different:
        raise ValueError(
            f'{source} ({found.format.title}) holds another network than this one: {"; ".join(different)}. Check arch, '
            'patch_size and in_channels, or whether it is the right file.'
        )
    own = network.arch.num_heads
    heads = stated.get('num_heads', stated.get('arch', {}).get('num_heads', own))
    if heads != own:
        raise ValueError(
            f'{source} holds a network of {heads} attention heads, this one has {own}: its tensors would fit, and mean '
            'something else. Check arch.'
        )


def check_features(report: LoadReport, network: VisionTransformer, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the file's network has parts that this one lacks: without them it computes something else."""
    lacking = features_of(tensors) - features_of(network.state_dict())
    if network.relative_position == 'per_block':
        lacking -= {'a relative position bias shared by all blocks'}  # it was given to every block
    if lacking:
        options = ', '.join(FEATURES[name][1] for name in sorted(lacking))
        raise ValueError(
            f'{report.source} ({report.format}) is of a network with {" and ".join(sorted(lacking))}, which this one lacks: it '
            f'would compute something else. Build it with {options}.'
        )


def check_coverage(
    report: LoadReport,
    network: VisionTransformer,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    allow_missing: Sequence[str],
) -> None:
    """Raise ValueError unless every tensor of the network was found with its shape, or may be new: by name, or by a pattern
    such as '*.rel_pos_bias.*'."""
    may_be_new = (*allow_missing, *getattr(network, 'may_be_new', ()))
    uncovered = [name for name in report.missing if not any(fnmatchcase(name, new) for new in may_be_new)]
    if not uncovered:
        return
    there = {name: tuple(tensors[name].shape) for name in uncovered if name in tensors}
    reasons = [f'{name} is {shape} there and {tuple(own[name].shape)} here' for name, shape in list(there.items())[:4]]
    absent = [name for name in uncovered if name not in there]
    if absent:
        reasons.append(f'absent: {shorten(absent)}')
    if {'ln1.weight', 'ln1.bias'} == set(uncovered) and 'ln2.weight' in tensors:
        reasons.append(
            'it was fine-tuned with a norm after mean pooling, and has none for tokens: '
            "read the tap 'block:-1', with allow_missing=('ln1.weight', 'ln1.bias')"
        )
    arch = network.arch
    raise ValueError(
        f'{report.source} ({report.format}) does not cover the network (width {arch.width}, {arch.depth} blocks, patch '
        f"{network.patch_size}; looked under the prefix '{report.prefix}'): {len(uncovered)} of {len(own)} tensors are not "
        f'there. {"; ".join(reasons)}. The file has: {shorten(list(weights))}. '
        "Check arch, patch_size and prefix (a stage's teacher is under 'teachers.<name>.network.')."
    )
