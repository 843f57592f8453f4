"""What of a config decides a run's result, and what of it differs between two."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

from mkd_plugin.compat.hosts import HOSTS

DECIDES = (
    'model',
    'data_preprocessor',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'auto_scale_lr',
    'custom_hooks',
    'randomness',
)
# The order and augmentation of samples do not depend on how many processes load them.
IRRELEVANT = re.compile(
    r'train_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor|timeout)'
    r'|train_cfg\.(val_\w+|dynamic_intervals.*|fast_forward_on_resume)|.*\._scope_'
)


def record_of(cfg: Config) -> dict[str, str]:
    """The deciding values by their dotted names, as text: it is saved in checkpoints."""
    values = cfg.to_dict() if isinstance(cfg, Config) else dict(cfg)
    record = {'world_size': str(get_world_size())}
    for key in DECIDES:
        for name, value in leaves(key, values.get(key)):
            if not IRRELEVANT.fullmatch(name):
                record[name] = json.dumps(value, default=plain_name)
    return record


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value in a nested config, with its dotted name; None and what is not there are the same."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(f'{name}.{key}', part)
    elif isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        for number, part in enumerate(value):
            yield from leaves(f'{name}.{number}', part)
    elif value is not None:
        yield name, value


def plain_name(value: Any) -> str:
    """A class or function by its name; of another object only what it is, for its text may hold an address."""
    if hasattr(value, '__qualname__'):
        return f'{value.__module__}.{value.__qualname__}'
    return str(value) if type(value).__name__.startswith('Lazy') else type(value).__qualname__


def changes_between(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One line a difference."""
    absent = 'not there'
    return [
        f'{name}: {old.get(name, absent)} → {new.get(name, absent)}'
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


FORMAT = 1  # of meta['mkd_plugin']; raised when a reader of an older one would be wrong


def software() -> dict[str, str]:
    """Version of torch, timm and every host that is installed, by module; of hosts also which distribution it is."""
    found = {
        host.module: ', '.join(f'{number} ({name})' for name, number in installed.items())
        for host in HOSTS
        if (installed := host.installed())
    }
    found['torch'] = str(torch.__version__)  # a plain string: weights_only loading knows no TorchVersion
    with suppress(PackageNotFoundError):
        found['timm'] = version('timm')
    return found


def model_files(cfg: Config) -> dict[str, dict[str, Any]]:
    """The files that a config's networks are read from: teachers', and what the student starts from.

    Returns:
        Option → ``path``, ``bytes`` and ``sha256``; both None for a file that is not here, such as one of a scheme that
        only the host can resolve.
    """
    values = cfg.to_dict() if isinstance(cfg, Config) else dict(cfg)
    paths = {
        name.removeprefix('model.'): value
        for name, value in leaves('model', values.get('model'))
        if name.split('.')[-1] == 'checkpoint' and isinstance(value, str) and value
    }
    return {name: fingerprint(path) for name, path in paths.items()}


def fingerprint(path: str) -> dict[str, Any]:
    """Size and sha256 of a file, or of what torch's cache has of an address."""
    if path.startswith(('http://', 'https://')):
        file = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(path).path).name)
    else:
        file = Path(path).expanduser()
    if not file.is_file():
        return {'path': path, 'bytes': None, 'sha256': None}
    digest = hashlib.sha256()
    with file.open('rb') as opened:
        while block := opened.read(2**22):
            digest.update(block)
    return {
        'path': path if '://' in path else str(file.resolve()),
        'bytes': file.stat().st_size,
        'sha256': digest.hexdigest(),
    }


def changed_teachers(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each teacher's file whose content is not what the run was begun with."""
    return [
        f'{name}: {new[name]["path"]} had sha256 {before["sha256"]} and now has {new[name]["sha256"]}'
        for name, before in old.items()
        if name.startswith('teachers.') and before['sha256'] and name in new and new[name]['sha256'] != before['sha256']
    ]
