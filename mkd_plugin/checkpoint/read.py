"""Reading a checkpoint without running what is in it."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mkd_plugin.checkpoint.torchscript import read_torchscript


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
    argparse.Namespace,  # the command line, in checkpoints of MAE's family, DINO and SLIP
    np.ndarray,
    np.dtype,
    np.zeros(0).__reduce__()[0],  # numpy's constructors of arrays and scalars, wherever this version keeps them
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in (np.uint32, np.int64, np.float32, np.float64, np.bool_)),
]

# Where a state dict may lie in a checkpoint, and what holds tensors that are no weights.
ENTRIES = ('state_dict', 'model', 'module')
NO_WEIGHTS = ('optimizer', 'optimizers', 'optimizer_state', 'optimizer_state_dict', 'message_hub', 'scaler')

# What reading a damaged file, or one that is no checkpoint, raises in torch, zipfile and pickle.
UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
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


def read_checkpoint(
    path: str | Path, map_location: Any = 'cpu', *, content: BinaryIO | None = None, lazy: bool = False
) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Args:
        path: What ``torch.save`` wrote, a ``.safetensors`` file, a TorchScript archive, or a folder with Hugging Face's
            ``config.json`` and weights.
        map_location: torch's; for files of ``torch.save`` only, the others are read to the CPU.
        content: What is in it, if it is no file of this machine; ``path`` is then only named in messages.
        lazy: Leave the tensors in the file until they are read, where the file allows it: for whoever copies them at
            once. They are gone if somebody writes to the file.

    Returns:
        The dict in the file; for the other kinds one with ``state_dict`` and, if they say more, ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or it would run code, or it holds no dict.
    """
    if content is None:
        path = Path(path).expanduser()
        if is_folder_of_weights(path):
            return read_folder(path, lambda file: read_checkpoint(file, lazy=lazy))
        if not path.is_file():
            raise FileNotFoundError(f'There is no checkpoint {path}.')
    try:
        checkpoint = unpack(path, map_location, content, lazy)
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


def unpack(path: str | Path, map_location: Any, content: BinaryIO | None, lazy: bool) -> Any:
    """What is in a file, whichever of the three kinds it is of. Raises one of ``UNREADABLE``."""
    if content is None and is_safetensors(Path(path)):
        return read_safetensors(Path(path))
    zipped = zipfile.is_zipfile(content or path)
    if content is not None:
        content.seek(0)
    if zipped and content is None:
        with zipfile.ZipFile(path) as archive:
            check_unfolded(archive, Path(path).stat().st_size)
            if is_torchscript(archive):
                return {'state_dict': read_torchscript(archive)}
    with torch.serialization.safe_globals(HARMLESS):
        mapped = lazy and zipped and content is None
        return torch.load(content or path, map_location=map_location, weights_only=True, mmap=mapped)


def refused_part(message: str) -> str | None:
    """What torch's long message says was refused; None if it only says that the file makes no sense."""
    told = re.search(r'GLOBAL (\S+)|getattr\(.*refused', message)
    return None if told is None else (told[1] or told[0])


def weights_of(checkpoint: dict[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: what lies under ``state_dict``, ``model`` or ``module``, or else the whole dict.

    Of a dict of state dicts (DINO's ``student`` and ``teacher``) all are taken, each name with its entry's before it.

    Raises:
        ValueError: There are no tensors, for example because the file is an optimizer's state only.
    """
    inner = next((checkpoint[key] for key in ENTRIES if isinstance(checkpoint.get(key), dict)), checkpoint)
    weights = tensors_in(inner)
    if not weights:
        for entry, value in inner.items():
            if isinstance(value, dict) and entry not in NO_WEIGHTS:
                weights |= {f'{entry}.{name}': tensor for name, tensor in tensors_in(value).items()}
    if not weights:
        optimizer = ' It is the state of an optimizer.' if set(checkpoint) & {*NO_WEIGHTS, 'param_groups'} else ''
        raise ValueError(f'{source} holds no weights: its entries are {sorted(map(str, checkpoint))[:10]}.{optimizer}')
    return weights


def tensors_in(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dict that have names."""
    return {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}


def provenance_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What our ``PortableCheckpointHook`` wrote about the network; empty for another's file."""
    meta = checkpoint.get('meta')
    found = meta.get('mkd_plugin') if isinstance(meta, dict) else None
    return found if isinstance(found, dict) else {}


ALLOWED = 64 * 2**20  # bytes beside the tensors: code, pickles, the table of contents
HEADER = 8  # bytes of the length of a safetensors file's header


def check_unfolded(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse a zip file that unfolds to far more than it has bytes: torch stores tensors uncompressed.

    Args:
        archive: The file.
        size: Its bytes on the disk.

    Raises:
        ValueError: It is such a bomb.
    """
    unfolded = sum(entry.file_size for entry in archive.infolist())
    if unfolded > 2 * size + ALLOWED:
        raise ValueError(
            f'it would unfold to {unfolded:,} bytes from {size:,}: torch stores tensors uncompressed, so this is no checkpoint'
        )


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether it is what ``torch.jit.save`` writes: pickled tensors beside compiled code."""
    return any(name.endswith('/constants.pkl') for name in archive.namelist())


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: with the length of a JSON text, and its bracket."""
    with path.open('rb') as file:
        head = file.read(HEADER + 1)
    length = int.from_bytes(head[:HEADER], 'little')
    return head[HEADER:] == b'{' and length <= path.stat().st_size - HEADER


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
