"""Hugging Face's files: safetensors, and folders that ``save_pretrained`` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

__all__ = ['is_folder_of_weights', 'read_folder', 'read_safetensors']

WHOLE = ('model.safetensors', 'pytorch_model.bin')
INDEX = tuple(f'{name}.index.json' for name in WHOLE)  # of weights that are spread over several files


def read_safetensors(path: Path) -> dict[str, Any]:
    """``state_dict``, and what this package wrote about it as ``meta``.

    Raises:
        SafetensorError: It is damaged.
        ValueError: Its metadata are.
    """
    with safe_open(path, framework='pt') as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    meta = {'mkd_plugin': json.loads(metadata['mkd_plugin'])} if 'mkd_plugin' in metadata else {}
    return {'state_dict': weights, 'meta': meta}


def is_folder_of_weights(path: Path) -> bool:
    """Whether it is a folder with a file of weights that Hugging Face's libraries would find."""
    return any((path / name).is_file() for name in (*WHOLE, *INDEX))


def read_folder(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """``state_dict`` of the folder's weights, and ``meta`` with its ``config.json``.

    Args:
        path: The folder.
        read: Reads one file.

    Raises:
        FileNotFoundError: A file that the folder's index names is not there.
        ValueError: A file cannot be read, or lies elsewhere.
    """
    whole = next((path / name for name in WHOLE if (path / name).is_file()), None)
    if whole is not None:
        files = [whole]
    else:
        index = next(path / name for name in INDEX if (path / name).is_file())
        files = [path / name for name in sorted(set(load_json(index)['weight_map'].values()))]
        if any(file.parent != path for file in files):
            raise ValueError(f'{index} names files outside of its folder.')
    weights: dict[str, Any] = {}
    for file in files:
        found = read(file)
        weights |= found.get('state_dict', found)
    config = path / 'config.json'
    return {'state_dict': weights, 'meta': {'hf_config': load_json(config)} if config.is_file() else {}}


def load_json(path: Path) -> dict[str, Any]:
    """A JSON file with a dict. Raises ValueError if it is none."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as JSON ({error}).') from error
    if not isinstance(found, dict):
        raise ValueError(f'{path} holds no dict.')
    return found
