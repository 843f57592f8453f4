"""Write converted weights atomically, with a note of where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mkd_plugin.checkpoint.checksum import METADATA, tensor_checksums
from mkd_plugin.utils.files import atomic_write, write_whole


def write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    *,
    entry: str = 'state_dict',
    files: Mapping[str, str] | None = None,
) -> None:
    """Write weights as ``.safetensors``, with ``torch.save``, or as a folder of Hugging Face or timm.

    Args:
        path: Destination. ``.safetensors`` selects that format, any other suffix ``torch.save``; with ``files``
            it is a folder.
        weights: Tensors by the names to write.
        provenance: Stored as ``meta['mkd_plugin']``; in safetensors files as JSON in the metadata, beside checksums.
        entry: Key of the state dict in a file of ``torch.save``.
        files: Texts of the folder by file name, ``config.json`` among them.

    Raises:
        ValueError: ``path`` is an existing folder that holds no weights.
    """
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    if files is not None:
        if path.exists() and not (path / 'config.json').is_file():
            raise ValueError(f'{path} exists and is not a folder of weights. Choose another destination.')
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(path / name, text)
        path = path / 'model.safetensors'
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, 'wb') as file:
        if path.suffix == '.safetensors':
            texts = {'format': 'pt', 'mkd_plugin': json.dumps(provenance)}
            checksums = {METADATA: tensor_checksums(tensors, texts)}
            # not by save_file, which writes with the mode 0600 and fails with an error of its own
            file.write(save(tensors, texts | checksums))
        else:
            torch.save({entry: tensors, 'meta': {'mkd_plugin': dict(provenance)}}, file)
