"""What a checkpoint file is, from reading it without running anything in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mkd_plugin.checkpoint.formats import COMPILED, find_networks
from mkd_plugin.checkpoint.read import provenance_of, read_checkpoint, weights_of

# (format, patterns that must all be found in the keys), the most particular first: models around a network, which
# `mkd_plugin.checkpoint.formats` finds in them, and families that no loader here reads.
MODELS = (
    ('mkd_plugin pre-training', (r'^backbone\.layers\.0\.', r'^objectives\.')),
    ('mmpretrain algorithm (backbone.…)', (r'^backbone\.layers\.0\.ln1\.',)),
    ('mmseg or mmdet model', (r'^backbone\.', r'^(decode_head|bbox_head|roi_head|rpn_head)\.')),
    ('MM model (backbone.…)', (r'^backbone\.',)),
)
OTHERS = (('torchvision ViT', (r'^encoder\.layers\.encoder_layer_0\.',)), ('ResNet', (r'^layer1\.0\.conv1\.',)))


def guess_format(keys: Iterable[str]) -> str:
    """What wrote these weights, judged by their names."""
    names = [name.replace(COMPILED, '') for name in keys]
    found = first_match(names, MODELS)
    if found is not None:
        return found
    networks = [
        f'{entry.format.title}{f", under {entry.prefix!r}" if entry.prefix else ""}' for entry in find_networks(names)
    ]
    if networks:
        return '; '.join(networks)
    unknown = f'unknown; names begin with {sorted({name.split(".")[0] for name in names})[:8]}'
    return first_match(names, OTHERS) or unknown


def first_match(names: list[str], known: Iterable[tuple[str, tuple[str, ...]]]) -> str | None:
    """The first entry all of whose patterns are found."""
    for title, patterns in known:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return title
    return None


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a file holds.

    Returns:
        ``file``, ``bytes``, ``format``, ``tensors``, ``parameters``, ``dtypes``, ``entries`` (the file's other entries),
        ``epoch``, ``iter``, ``time``, ``seed``, ``stage``, ``provenance`` and ``config`` (text); None or empty where it does
        not say.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, would run code, or holds no weights.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, path)
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    provenance = dict(provenance_of(checkpoint))
    return {
        'file': str(path),
        'bytes': Path(path).expanduser().stat().st_size,
        'format': guess_format(weights),
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


def printable(text: Any) -> str:
    """Text of a file nobody has vouched for: nothing in it may steer the terminal."""
    return ''.join(letter if letter.isprintable() or letter == '\n' else repr(letter)[1:-1] for letter in str(text))


def outline(entries: Mapping[Any, Any], *, indent: int) -> list[str]:
    """Nested entries, one a line; those of a file are said to be missing rather than None."""
    lines = []
    for key, value in entries.items():
        deeper = isinstance(value, Mapping) and any(isinstance(part, (Mapping, str)) for part in value.values())
        shown = '' if deeper else 'not known' if value is None else value
        lines.append(f'{"":<{indent}}{key!s:<12} {shown}'.rstrip())
        lines += outline(value, indent=indent + 2) if deeper else []
    return lines


def render(description: Mapping[str, Any], *, config: bool = False) -> str:
    """The description as lines.

    Args:
        description: From :func:`describe_checkpoint`.
        config: Also the config's whole text.
    """
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
