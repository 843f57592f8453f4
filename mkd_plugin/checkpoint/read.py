"""Reading a checkpoint without running what is in it."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

__all__ = ['install_safe_loader', 'provenance_of', 'read_checkpoint', 'weights_of']


def statistic_of_history(owner: Any, name: str) -> Any:
    """Stands in for ``getattr`` while reading: a log's history names its own statistics through it, and nothing else may."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused')
    return getattr(owner, name)


# What mmengine's own checkpoints hold beside tensors: the log's history and numpy's arrays. mmengine's own list has the
# real `getattr`, through which a file could reach any attribute.
HARMLESS: list[Any] = [
    HistoryBuffer,
    (statistic_of_history, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    np.zeros(0).__reduce__()[0],  # numpy's constructors of arrays and scalars, wherever this version keeps them
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in (np.uint32, np.int64, np.float32, np.float64, np.bool_)),
]

# What reading a damaged file, or one that is no checkpoint, raises in torch, zipfile and pickle.
UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or it would run code, or it holds no dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint {path}.')
    try:
        with torch.serialization.safe_globals(HARMLESS):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except UNREADABLE as error:
        refused = refused_part(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            raise ValueError(f'{path} cannot be read as a checkpoint: is it one, and complete? ({error})') from error
        raise ValueError(
            f'{path} was refused: it holds more than tensors and plain values ({refused}). Nothing in it was run. '
            'Checkpoints of this package, and state dicts saved with torch.save, can be read.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a dict of weights.')
    return checkpoint


def refused_part(message: str) -> str | None:
    """What torch's long message says was refused; None if it only says that the file makes no sense."""
    told = re.search(r'GLOBAL (\S+)|getattr\(.*refused', message)
    return None if told is None else (told[1] or told[0])


def weights_of(checkpoint: dict[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the whole dict, or what lies under ``state_dict`` or ``model``.

    Raises:
        ValueError: There are no tensors, for example because the file is an optimizer's state only.
    """
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    weights = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f'{source} holds no weights: its entries are {sorted(map(str, checkpoint))[:10]}.')
    return weights


def provenance_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What our ``PortableCheckpointHook`` wrote about the network; empty for another's file."""
    meta = checkpoint.get('meta')
    found = meta.get('mkd_plugin') if isinstance(meta, dict) else None
    return found if isinstance(found, dict) else {}


def install_safe_loader() -> None:
    """Make mmengine read checkpoints, local or by http, through :func:`read_checkpoint`.

    onedl-mmengine falls back to ``weights_only=False`` when the safe load fails, so that a hostile file runs code through
    ``load_from``, ``--resume`` and ``init_cfg``.
    """

    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        return read_checkpoint(filename, map_location)

    def load_from_http(
        filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = True
    ) -> dict[str, Any]:
        folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
        path = folder / Path(urlparse(filename).path).name
        if get_dist_info()[0] == 0 and not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(filename, str(path), progress=progress)
        barrier()
        return read_checkpoint(path, map_location)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http, force=True)
