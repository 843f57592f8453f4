"""Write converted weights atomically, with a note of where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mkd_plugin.checkpoint.checksum import METADATA, tensor_checksums
from mkd_plugin.utils.files import atomic_write


def write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    *,
    entry: str = 'state_dict',
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write weights as ``.safetensors``, with ``torch.save``, or as a Hugging Face folder.

    Args:
        path: Destination. ``.safetensors`` selects that format, any other suffix ``torch.save``; with a config and
            without a suffix it is a folder.
        weights: Tensors by the names to write.
        provenance: Stored as ``meta['mkd_plugin']``; in safetensors files as JSON in the metadata, beside checksums.
        entry: Key of the state dict in a file of ``torch.save``.
        config: Content of the folder's ``config.json``.

    Raises:
        ValueError: ``path`` is an existing folder that holds no weights.
    """
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    if config is not None and not path.suffix:
        if path.exists() and not (path / 'config.json').is_file():
            raise ValueError(f'{path} exists and is not a folder of weights. Choose another destination.')
        path.mkdir(parents=True, exist_ok=True)
        with atomic_write(path / 'config.json') as file:
            file.write(json.dumps(config, indent=2) + '\n')
        path = path / 'model.safetensors'
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, 'wb') as file:
        if path.suffix == '.safetensors':
            texts = {'format': 'pt', 'mkd_plugin': json.dumps(provenance)}
            checksums = {METADATA: tensor_checksums(tensors, texts)}
            save_file(tensors, file.name, texts | checksums)  # takes names only
        else:
            torch.save({entry: tensors, 'meta': {'mkd_plugin': dict(provenance)}}, file)
