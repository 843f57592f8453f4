"""Writing a converted checkpoint: whole or not at all, with where it comes from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**20  # bytes that are read at once


def sha256_of(path: Path) -> str:
    """Of a file; of a folder, of its files' names and hashes."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        listed = '\n'.join(f'{file.name} {sha256_of(file)}' for file in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    about: Mapping[str, Any],
    *,
    entry: str = 'state_dict',
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write a file (``.safetensors``, or else as ``torch.save`` does), or Hugging Face's folder if there is a config.

    Args:
        path: Where to. With a config and without a suffix it is a folder.
        weights: By the names they are to have.
        about: What ``meta['mkd_plugin']`` says; in safetensors files it is JSON among the metadata.
        entry: Where the state dict lies in a file of ``torch.save``.
        config: ``config.json`` of the folder.

    Raises:
        ValueError: There is a folder already that is not one of weights.
    """
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    if config is not None and not path.suffix:
        if path.exists() and not (path / 'config.json').is_file():
            raise ValueError(f'{path} exists and is no folder of weights. Name another destination.')
        path.mkdir(parents=True, exist_ok=True)
        in_place(path / 'config.json', lambda half: half.write_text(json.dumps(config, indent=2) + '\n'))
        path = path / 'model.safetensors'
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        metadata = {'format': 'pt', 'mkd_plugin': json.dumps(about)}
        in_place(path, lambda half: save_file(tensors, half, metadata))
    else:
        in_place(path, lambda half: torch.save({entry: tensors, 'meta': {'mkd_plugin': dict(about)}}, half))


def in_place(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the destination, flush to the disk, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + '.tmp')
    try:
        write(half)
        with half.open('rb+') as file:
            os.fsync(file.fileno())
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
