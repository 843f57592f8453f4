"""Finds the shipped configs, in an installation and in a checkout alike."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

_PACKAGE = Path(__file__).resolve().parents[1]


def config_root() -> Path:
    """The folder of the configs: `mkd_plugin/.mim/configs` if installed, else `configs` of the checkout."""
    installed = _PACKAGE / '.mim' / 'configs'
    return installed if installed.is_dir() else _PACKAGE.parent / 'configs'


def get_config(name: str) -> Config:
    """Read a shipped config.

    Args:
        name: Its path below `config_root()`, with or without `.py`:
            `'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k'`.

    Raises:
        ValueError: There is no such config; the message lists the closest names.
    """
    root = config_root()
    wanted = name.removesuffix('.py')
    known = {path.relative_to(root).with_suffix('').as_posix(): path for path in sorted(root.rglob('*.py'))}
    if wanted not in known:
        close = get_close_matches(wanted, known, n=5, cutoff=0.4)
        hint = f'the closest are {", ".join(close)}' if close else 'no name is close to it'
        raise ValueError(f'no config is named {wanted!r} below {root}: {hint}')
    return Config.fromfile(known[wanted])


def ablations(method: str) -> dict[str, Any]:
    """The ablation rows of a method: name → dict(config, options, paper, source).

    Raises:
        ValueError: The method has none; the message lists those that do.
    """
    path = config_root() / method / 'ablations.yml'
    if not path.is_file():
        known = sorted(found.parent.name for found in config_root().glob('*/ablations.yml'))
        raise ValueError(f'no ablations for {method!r}: there are some for {known}')
    rows: dict[str, Any] = yaml.safe_load(path.read_text())['rows']
    return rows


def get_ablation(method: str, row: str) -> Config:
    """The config of one ablation row.

    Args:
        method: Folder of the method below `config_root()`, such as `'dbot'`.
        row: Name of the row in its `ablations.yml`.

    Raises:
        ValueError: There is no such method or row; the message lists those there are.
    """
    rows = ablations(method)
    if row not in rows:
        raise ValueError(f'no ablation {row!r} of {method!r}: there are {sorted(rows)}')
    cfg = get_config(rows[row]['config'])
    cfg.merge_from_dict(rows[row]['options'])
    return cfg
