"""Read checkpoints without running code in them: the one entry point is :func:`read_checkpoint`."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from io import SEEK_END
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import safe_open
from torch import Tensor

from mkd_plugin.checkpoint.archive import (
    ZIP,
    holds_arrays,
    open_archive,
    read_arrays,
    read_torchscript,
    scan_archive,
    scan_old_format,
)
from mkd_plugin.checkpoint.checksum import PICKLE, check_tensors, checked_records
from mkd_plugin.utils.files import printable

# Keys under which a checkpoint may hold its state dict, and keys whose tensors are not weights.
STATE_DICT_KEYS = ('state_dict', 'model', 'module')
NOT_WEIGHTS = ('optimizer', 'optimizers', 'optimizer_state', 'optimizer_state_dict', 'message_hub', 'scaler')

# Weights in a Hugging Face folder: one file, or an index of several.
FOLDER_FILES = ('model.safetensors', 'pytorch_model.bin')
FOLDER_INDEXES = tuple(f'{name}.index.json' for name in FOLDER_FILES)

RUN_FILE = 'run.pth'  # what a sharded run's checkpoint, a folder, holds besides tensors

MAX_JSON_BYTES = 2**24  # of a JSON text, whose values take up to 20 times as much memory; names of 100,000 tensors
MAX_FOLDER_FILES = 1000
MAX_NAME = 500  # characters of a tensor's name
HEADER_BYTES = 8  # a safetensors file starts with the length of its JSON header


class CheckpointError(ValueError):
    """A checkpoint that is damaged, unsafe to read, in an unknown format, or does not fit the network."""


def history_statistic(owner: Any, name: str) -> Any:
    """Replace ``getattr`` while unpickling: only the statistics of a log's ``HistoryBuffer`` can be looked up."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused')
    return getattr(owner, name)


# What ordinary checkpoints hold besides tensors. mmengine's own list of safe globals has the real `getattr`, through which
# a file could reach any attribute.
HARMLESS: list[Any] = [
    HistoryBuffer,
    (history_statistic, 'builtins.getattr'),
    argparse.Namespace,  # the command line, in checkpoints of MAE, DINO and SLIP
    np.ndarray,
    np.dtype,
    np.zeros(0).__reduce__()[0],  # the constructors of arrays and scalars, wherever this version of numpy keeps them
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in (np.uint32, np.int64, np.float32, np.float64, np.bool_)),
]


def read_checkpoint(
    path: str | Path, map_location: Any = 'cpu', *, content: BinaryIO | None = None, lazy: bool = False
) -> dict[str, Any]:
    """Read a checkpoint without running code in it.

    Args:
        path: A file written by ``torch.save``, a ``.safetensors`` or NumPy's ``.npz`` file, a TorchScript archive, or
            a folder with Hugging Face's ``config.json`` and weights.
        map_location: As in ``torch.load``; used for files of ``torch.save`` only, all others are read to the CPU.
        content: The bytes to read instead of a local file; ``path`` then only appears in messages.
        lazy: Map tensors from the file where its format allows it, instead of reading them now. Copy them before anything
            writes to the file.

    Returns:
        The file's dict; for the other formats a dict with ``state_dict`` and, if the file has metadata, ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, would run code, or does not hold a dict.
    """
    if content is None:
        path = Path(path).expanduser()
        if any((path / name).is_file() for name in (*FOLDER_FILES, *FOLDER_INDEXES)):
            return read_folder(path, lazy=lazy)
        if (path / RUN_FILE).is_file():
            raise CheckpointError(
                f'{path} holds the shares of a run under ShardedStrategy, which alone can resume from it. For everything else '
                'use a stage_….pth beside it, or the last checkpoint of the finished run.'
            )
        if not path.is_file():
            raise FileNotFoundError(f'There is no checkpoint {path}.')
    with refusing(path):
        checkpoint = read_file(path, map_location, content, lazy)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a dict of weights.')
    return checkpoint


def read_description(path: Path) -> Any:
    """Read what a file of ``torch.save`` holds besides its tensors, which are neither read nor compared with checksums.

    Raises:
        CheckpointError: The file is damaged, or would run code.
    """
    with refusing(path):
        return read_file(path, 'cpu', None, lazy=True, ending=PICKLE)


@contextmanager
def refusing(source: str | Path) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes the readers raise into a CheckpointError that names the file."""
    shown = printable(str(source))
    try:
        yield
    except FileNotFoundError:
        raise
    except CheckpointError as error:
        if shown in str(error):
            raise
        raise CheckpointError(f'{shown}: {error}') from error
    except Exception as error:
        match = re.search(r'GLOBAL (\S+)|getattr\(.*refused', str(error))
        if match is None or not isinstance(error, pickle.UnpicklingError):  # merely damaged
            reason = printable(str(error), 300) or type(error).__name__
            raise CheckpointError(
                f'{shown} cannot be read as a checkpoint: is it one, and complete? ({reason})'
            ) from error
        refused = printable(match[1] or match[0], 300)
        raise CheckpointError(
            f'{shown} was refused: it holds more than tensors and plain values ({refused}). Nothing in it was run. Checkpoints '
            'of this package, and state dicts saved with torch.save, can be read.'
        ) from error


def read_file(path: str | Path, map_location: Any, content: BinaryIO | None, lazy: bool, *, ending: str = '') -> Any:
    """Read a file of any of these formats, after checks that cost little. Raises anything if it is damaged.

    ``ending``: records whose names end so are compared with their checksums.
    """
    if content is None and is_safetensors(Path(path)):
        return read_safetensors(Path(path))
    with nullcontext(content) if content is not None else Path(path).open('rb') as file:
        size = file.seek(0, SEEK_END)
        file.seek(0)
        zipped = file.read(len(ZIP)) == ZIP
        file.seek(0)
        if zipped:
            archive = open_archive(file, size)
            if holds_arrays(archive):
                return {'state_dict': read_arrays(archive)}
            module = scan_archive(archive, size)
            if module is not None:
                return {'state_dict': read_torchscript(archive, module)}
        elif content is None:
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                scan_old_format(data)
        else:
            scan_old_format(content.read())
        file.seek(0)
        checked = checked_records(content or Path(path), ending=ending) if zipped else nullcontext()
        with torch.serialization.safe_globals(HARMLESS), checked:
            mmapped = lazy and zipped and content is None
            return torch.load(
                path if content is None else content, map_location=map_location, weights_only=True, mmap=mmapped
            )


def is_safetensors(path: Path) -> bool:
    """Check the start of the file: the length of a JSON text, and its opening brace. Raises ValueError if it is too long."""
    with path.open('rb') as file:
        start = file.read(HEADER_BYTES + 1)
    length = int.from_bytes(start[:HEADER_BYTES], 'little')
    if start[HEADER_BYTES:] != b'{' or length > path.stat().st_size - HEADER_BYTES:
        return False
    if length > MAX_JSON_BYTES:
        raise ValueError(f'its header of {length:,} bytes is longer than {MAX_JSON_BYTES:,}')
    return True


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read ``state_dict`` and this package's ``meta``."""
    with safe_open(path, framework='pt') as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    check_tensors(weights, metadata)
    meta = {'mkd_plugin': json.loads(metadata['mkd_plugin'])} if 'mkd_plugin' in metadata else {}
    return {'state_dict': weights, 'meta': meta}


def read_folder(path: Path, *, lazy: bool) -> dict[str, Any]:
    """Read ``state_dict`` from a folder of Hugging Face or timm, with ``config.json`` and what we noted in ``meta``."""
    files = [path / name for name in FOLDER_FILES if (path / name).is_file()][:1] or indexed_files(path)
    weights: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for file in files:
        with refusing(file):
            checkpoint = read_file(file, 'cpu', None, lazy)
            weights |= checkpoint.get('state_dict', checkpoint)
        if provenance := provenance_of(checkpoint):  # of a folder that we wrote
            meta['mkd_plugin'] = provenance
    if (path / 'config.json').is_file():
        meta['hf_config'] = load_json(path / 'config.json')
    return {'state_dict': weights, 'meta': meta}


def indexed_files(path: Path) -> list[Path]:
    """Return the files that the index of a Hugging Face folder names. Raises CheckpointError if one is not a file in it."""
    index = next(path / name for name in FOLDER_INDEXES if (path / name).is_file())
    names = load_json(index).get('weight_map')
    if not names or not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f'{index} has no weight_map from names of tensors to names of files.')
    files = [path / name for name in sorted(set(names.values()))]
    if any('\0' in file.name or file.parent != path for file in files):
        raise CheckpointError(f'{index} names files outside of its folder.')
    if len(files) > MAX_FOLDER_FILES or len({file.resolve() for file in files}) < len(files):
        raise CheckpointError(f'{index} names more than {MAX_FOLDER_FILES} files, or one file twice.')
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f'{index} names files that are not there: {missing[:4]}.')
    return files


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold a dict."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f'{path} has more than {MAX_JSON_BYTES:,} bytes.')
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f'{path} cannot be read as JSON ({printable(str(error), 300)}).') from error
    if not isinstance(value, dict):
        raise CheckpointError(f'{path} holds no dict.')
    return value


def weights_of(checkpoint: dict[str, Any], source: str | Path) -> dict[str, Tensor]:
    """Find the state dict in a checkpoint: under ``state_dict``, ``model`` or ``module``, or else the whole dict.

    If there are several state dicts (DINO's ``student`` and ``teacher``), return all, names prefixed with their keys.

    Raises:
        CheckpointError: There are no weights, for example because the file only holds an optimizer's state.
    """
    inner = next((checkpoint[key] for key in STATE_DICT_KEYS if isinstance(checkpoint.get(key), dict)), checkpoint)
    weights = named_tensors(inner)
    if not weights:
        for key, value in inner.items():
            if isinstance(value, dict) and key not in NOT_WEIGHTS:
                weights |= {f'{key}.{name}': tensor for name, tensor in named_tensors(value).items()}
    if not weights:
        optimizer = ' It is the state of an optimizer.' if set(checkpoint) & {*NOT_WEIGHTS, 'param_groups'} else ''
        keys = [printable(key, 100) for key in sorted(map(str, checkpoint))[:10]]
        raise CheckpointError(f'{source} holds no weights: its entries are {keys}.{optimizer}')
    strange = next((name for name in weights if len(name) > MAX_NAME or not name.isprintable()), None)
    if strange is not None:
        raise CheckpointError(
            f"{source}: '{printable(strange, 100)}' is no name of a tensor: names are printable and have at most "
            f'{MAX_NAME} characters.'
        )
    return weights


def named_tensors(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Select the tensors with string keys."""
    return {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}


def provenance_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``PortableCheckpointHook`` recorded about the network; empty for files of other programs."""
    meta = checkpoint.get('meta')
    provenance = meta.get('mkd_plugin') if isinstance(meta, dict) else None
    return provenance if isinstance(provenance, dict) else {}
