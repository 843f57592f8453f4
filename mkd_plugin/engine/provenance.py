"""Where a checkpoint comes from: software, and the files its networks were read from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.config import Config

from mkd_plugin.engine.config_record import leaves
from mkd_plugin.hosts import HOSTS

__all__ = ['FORMAT', 'changed_teachers', 'model_files', 'software']

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
