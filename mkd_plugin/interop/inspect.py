"""Describe a checkpoint file without running code in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mkd_plugin.checkpoint.formats import find_networks
from mkd_plugin.checkpoint.formats.detect import COMPILE_PREFIX, looks_like
from mkd_plugin.checkpoint.foundation import identify
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, weights_of
from mkd_plugin.utils.files import printable

# Models around a network, which `find_networks` would find inside: each pattern matches a name. Specific ones come first.
MODELS = (
    ('mkd_plugin pre-training', (r'^backbone\.layers\.0\.', r'^objectives\.')),
    ('mmpretrain algorithm (backbone.…)', (r'^backbone\.layers\.0\.ln1\.',)),
    ('mmseg or mmdet model', (r'^backbone\.', r'^(decode_head|bbox_head|roi_head|rpn_head)\.')),
    ('MM model (backbone.…)', (r'^backbone\.',)),
)


def guess_format(names: Iterable[str]) -> str:
    """Guess from the names of the weights which program wrote them."""
    names = [name.replace(COMPILE_PREFIX, '') for name in names]
    networks = '; '.join(
        f'{entry.format.title}{f", under {entry.prefix!r}" if entry.prefix else ""}' for entry in find_networks(names)
    )
    beginnings = sorted({name.split('.')[0] for name in names})[:8]
    known = (
        title for title, patterns in MODELS if all(any(re.search(one, name) for name in names) for one in patterns)
    )
    return next(known, networks) or looks_like(names) or f'unknown; names begin with {beginnings}'


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """Describe a file.

    Returns:
        ``file``, ``bytes``, ``format``, ``teacher`` (only of a foundation model: the config that takes it), ``tensors``,
        ``parameters``, ``dtypes``, ``entries`` (the file's other keys), ``epoch``, ``iter``, ``time``, ``seed``, ``stage``,
        ``provenance`` and ``config`` (text); None or empty if the file does not say it.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, would run code, or holds no weights.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, path)
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    provenance = dict(provenance_of(checkpoint))
    foundation = identify(weights)
    return {
        'file': str(path),
        'bytes': Path(path).expanduser().stat().st_size,
        'format': guess_format(weights) if foundation is None else foundation.sentence(),
        **({} if foundation is None else {'teacher': foundation.config(path)}),
        'tensors': len(weights),
        'parameters': sum(tensor.numel() for tensor in weights.values()),
        'dtypes': dict(Counter(str(tensor.dtype).removeprefix('torch.') for tensor in weights.values())),
        'entries': [str(key) for key in checkpoint if checkpoint[key] is not weights and key not in weights],
        'epoch': meta.get('epoch', checkpoint.get('epoch')),
        'iter': meta.get('iter'),
        'time': meta.get('time'),
        'seed': meta.get('seed'),
        'stage': provenance.pop('stage', None),
        'provenance': provenance,
        'config': meta['cfg'] if isinstance(meta.get('cfg'), str) else None,
    }


def render(description: Mapping[str, Any], *, config: bool = False) -> str:
    """Format the result of :func:`describe_checkpoint` as lines, optionally with the whole text of the config."""
    lines = []
    for name, value in description.items():
        if name == 'config':
            lines.append(f'{name:<12}{"not in it" if value is None else f"{len(value.splitlines())} lines"}')
        elif name == 'provenance':
            lines.append(f'{name:<12}{"none: not written by mkd_plugin" if not value else ""}'.rstrip())
            lines += outline(value, indent=2)
        elif name in ('bytes', 'parameters', 'tensors'):
            lines.append(f'{name:<12}{value:,}')
        elif isinstance(value, dict):
            lines.append(f'{name:<12}{", ".join(f"{key} × {count}" for key, count in value.items())}')
        elif value not in (None, []):
            lines.append(f'{name:<12}{", ".join(value) if isinstance(value, list) else value}')
    if config and description['config'] is not None:
        lines += ['', description['config']]
    return printable('\n'.join(lines))


def outline(entries: Mapping[Any, Any], *, indent: int) -> list[str]:
    """Format nested entries, one per line."""
    lines = []
    for key, value in entries.items():
        nested = isinstance(value, Mapping) and any(isinstance(part, (Mapping, str)) for part in value.values())
        shown = '' if nested else 'not known' if value is None else value
        lines.append(f'{"":<{indent}}{key!s:<12} {shown}'.rstrip())
        lines += outline(value, indent=indent + 2) if nested else []
    return lines
