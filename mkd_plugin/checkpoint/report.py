"""Report what happened to every tensor of a checkpoint, and reject checkpoints that do not fit the network."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mkd_plugin.checkpoint.infer_arch import (
    OPTIONAL_PARTS,
    LoadableViT,
    infer_inner_norm,
    infer_rope,
    infer_sizes,
    is_gated,
    optional_parts,
)
from mkd_plugin.checkpoint.read import CheckpointError

ROWS = {
    'matched': 'loaded unchanged',
    'resized': 'loaded after resizing to the grid',
    'converted': 'of these, converted to another dtype',
    'missing': 'in the network, not in the file',
    'dropped': 'known, and not part of this network',
    'unexpected': 'unknown',
}


@dataclass
class LoadReport:
    """What happened to every tensor."""

    source: str  #: The file
    format: str = ''  #: Title of the format of the file's names
    prefix: str = ''  #: Prefix of the network's names in the file
    #: Loaded unchanged. Here and in resized, converted and missing, names are ours.
    matched: list[str] = field(default_factory=list)
    #: Loaded after their grid was resized, or after a shared table was copied to every block
    resized: list[str] = field(default_factory=list)
    #: Matched or resized tensors whose dtype differs from the network's
    converted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  #: In the network, not in the file
    #: In the file, known, and not part of the network: heads, decoders, other networks
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)  #: In the file, and unknown
    dtypes: list[str] = field(default_factory=list)  #: The conversions of dtype, such as 'float16 → float32'
    into: str = ''  #: Class of the network

    @property
    def loaded(self) -> list[str]:
        """Names of the network's tensors that were loaded."""
        return [*self.matched, *self.resized]

    def table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for column in ('tensors', 'number', 'which'):
            table.add_column(column, justify='right' if column == 'number' else 'left', overflow='fold')
        for name, meaning in ROWS.items():
            names = getattr(self, name)
            which = dict(matched='', converted=shorten(self.dtypes)).get(name, shorten(names))
            table.add_row(f'{name}: {meaning}', str(len(names)), escape(which))
        return table

    def title(self) -> str:
        """Return the line above the table."""
        place = f", under '{self.prefix}'" if self.prefix else ''
        return f'loaded {self.source}' + (f' ({self.format}{place})' if self.format else '')

    def line(self) -> str:
        """Return the line of a log: numbers, and the first names of what did not go from the file to the network as it was."""
        return f'{self.title()} into {self.into}: {self.summary()}'

    def summary(self) -> str:
        """Return the numbers of tensors, with the first names of all but the matched ones."""
        missing, unexpected, resized, dropped = (
            str(len(names)) + (f' ({shorten(names, 3)})' if names else '')
            for names in (self.missing, self.unexpected, self.resized, self.dropped)
        )
        rest = f', dropped {dropped}' if self.dropped else ''
        return f'matched {len(self.matched)}, missing {missing}, unexpected {unexpected}, resized {resized}{rest}'

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140, color_system=None).print(self.table())
        return '\n'.join([self.title(), *(line.rstrip() for line in text.getvalue().splitlines())])


def shorten(names: Sequence[str], limit: int = 6) -> str:
    """Join the first few names, and count the rest."""
    rest = len(names) - limit
    shown = [name if name.isprintable() else ascii(name) for name in names[:limit]]  # names of files may hold anything
    return ', '.join(shown) + (f' and {rest} more' if rest > 0 else '')


def check_architecture(
    report: LoadReport, network: LoadableViT, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Raise CheckpointError if the file's network has other sizes or, according to its metadata, other heads or rotations."""
    own = network.state_dict()
    theirs, ours = infer_sizes(tensors), infer_sizes(own)
    labels = dict(depth='blocks', mlp='hidden width', heads='attention heads')
    different = [
        f'{labels.get(name, name)} {theirs[name]} in the file and {ours[name]} here'
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    ]
    if different:
        raise CheckpointError(
            f'{report.source} ({report.format}) holds another network than this one: {"; ".join(different)}. Check arch, '
            'patch_size and in_channels, or whether it is the right file.'
        )
    own_heads = network.arch.num_heads
    heads = metadata.get('num_heads', metadata.get('arch', {}).get('num_heads', own_heads))
    if heads != own_heads:
        raise CheckpointError(
            f'{report.source} holds a network with {heads} attention heads, and this one has {own_heads}: the tensors have the '
            'same shapes, but the network would compute something else. Check arch.'
        )
    needed: dict[str, Any] = {
        'rope': metadata.get('rope', infer_rope(tensors)),
        'inner_norm': infer_inner_norm(tensors),
    }
    if needed['rope'] == 'dinov3':
        needed['norm_eps'] = metadata.get('norm_eps', 1e-5)
    if 'cls_token' in {**own, **tensors}:
        needed['cls_token'] = 'cls_token' in tensors
    if is_gated(tensors) and not is_gated(own):
        needed['activation'] = 'swiglu'
    lacking = [f'{name}={value!r}' for name, value in needed.items() if network.options[name] != value]
    if lacking:
        raise CheckpointError(
            f'{report.source} ({report.format}) holds a network that computes something else than this one. Build it with '
            f'{", ".join(lacking)}.'
        )


def check_parts(report: LoadReport, network: LoadableViT, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if the file's network has parts that this one lacks."""
    lacking = optional_parts(tensors) - optional_parts(network.state_dict())
    if network.relative_position == 'per_block':
        lacking -= {'a relative position bias shared by all blocks'}  # it was copied to every block
    if lacking:
        options = ', '.join(OPTIONAL_PARTS[name][1] for name in sorted(lacking))
        raise CheckpointError(
            f'{report.source} ({report.format}) holds a network with {" and ".join(sorted(lacking))}, which this one lacks: it '
            f'would compute something else. Build it with {options}.'
        )


def check_coverage(
    report: LoadReport,
    network: LoadableViT,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    allow_missing: Sequence[str],
) -> None:
    """Raise CheckpointError unless every tensor of the network was loaded or may be missing.

    Names and patterns (such as '*.rel_pos_bias.*') of tensors that may be missing are those in ``allow_missing`` and in the
    attribute ``may_be_new`` of the network's class.
    """
    optional = (*allow_missing, *getattr(network, 'may_be_new', ()))
    uncovered = [name for name in report.missing if not any(fnmatchcase(name, pattern) for pattern in optional)]
    if not uncovered:
        return
    other_shape = [name for name in uncovered if name in tensors]
    reasons = [
        f'{name} is {tuple(tensors[name].shape)} in the file and {tuple(own[name].shape)} here'
        for name in other_shape[:4]
    ]
    absent = [name for name in uncovered if name not in tensors]
    if absent:
        reasons.append(f'absent: {shorten(absent)}')
    if {'ln1.weight', 'ln1.bias'} == set(uncovered) and 'ln2.weight' in tensors:
        reasons.append(
            'the file was fine-tuned with a norm after mean pooling, and has none for tokens: '
            "read the tap 'block:-1', with allow_missing=('ln1.weight', 'ln1.bias')"
        )
    arch = network.arch
    raise CheckpointError(
        f'{report.source} ({report.format}) does not cover the network (width {arch.width}, {arch.depth} blocks, patch '
        f"{network.patch_size}; prefix '{report.prefix}'): {len(uncovered)} of {len(own)} tensors are missing. "
        f'{"; ".join(reasons)}. The file has: {shorten(list(weights))}. '
        "Check arch, patch_size and prefix (a stage's teacher is under 'teachers.<name>.network.')."
    )
