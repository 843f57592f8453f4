"""Checkpoints of sharded runs: a folder to which each process writes its share (``torch.distributed.checkpoint``).

``run.pth`` holds everything but weights and moments, and lists the other files of the folder with their sizes.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner.checkpoint import save_checkpoint
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from mkd_plugin.checkpoint.read import RUN_FILE, CheckpointError, read_description

INDEX = '.metadata'
# What torch's index of a sharded checkpoint refers to, by module.
INDEXED = {
    'torch.distributed.checkpoint.metadata': (
        'Metadata', 'MetadataIndex', 'ChunkStorageMetadata', 'TensorProperties', 'TensorStorageMetadata', 'StorageMeta',
        '_MEM_FORMAT_ENCODING',
    ),
    'torch.distributed.checkpoint.filesystem': ('_StorageInfo',),
    'torch': ('Size', 'float16', 'bfloat16', 'float32', 'float64', 'int64', 'int32', 'bool'),
    'torch.serialization': ('_get_layout',),
    'pathlib': ('PosixPath', 'WindowsPath'),
    'pathlib._local': ('PosixPath', 'WindowsPath'),
}  # fmt: skip


def begin_shards(
    folder: Path, tensors: dict[str, Tensor], rest: dict[str, Any], group: Any = None
) -> Callable[[], None]:
    """Copy this process's share of the tensors to main memory, and begin to write it in a thread. Every process must call it.

    ``group`` is for these threads alone, with a backend for CPUs. Returns a function that waits until all processes have
    written, and then writes the rest on rank 0; it raises the OSError of any process.
    """
    writing: Any = async_save(tensors, storage_writer=FileSystemWriter(folder), process_group=group)
    kept = copy.deepcopy(rest) if is_main_process() else {}

    def finish() -> None:
        try:
            index = writing.result()
        except CheckpointException as error:
            raise next((cause for cause, _ in error.failures.values() if isinstance(cause, OSError)), error) from error
        if is_main_process():
            pieces = {INDEX: 1}
            for piece in index.storage_data.values():
                pieces[piece.relative_path] = max(pieces.get(piece.relative_path, 0), piece.offset + piece.length)
            save_checkpoint({**kept, 'pieces': pieces}, str(folder / RUN_FILE))  # raises OSError, unlike torch.save

    return finish


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, sharded or not, with the saved ones of their names, whatever number of processes wrote them."""
    reader = PlainReader(folder)
    reader.read_metadata()  # raises as it says; torch wraps what is raised within its own call
    load(tensors, storage_reader=reader)


def check_pieces(folder: Path) -> None:
    """Raise CheckpointError, which names the piece, if one is missing or too short. Their content is not compared."""
    pieces = {RUN_FILE: 1}
    if (folder / RUN_FILE).is_file():
        rest = read_description(folder / RUN_FILE)
        pieces |= (rest.get('pieces') if isinstance(rest, dict) else None) or {INDEX: 1}
    for name, size in pieces.items():
        file = folder / name
        has = file.stat().st_size if file.is_file() else None
        if has is None or has < size:
            state = 'is missing' if has is None else f'has {has} of {size} bytes'
            raise CheckpointError(
                f'{folder}: its piece {name} {state}. Copy the whole folder again, or resume from another checkpoint.'
            )


class PlainReader(FileSystemReader):
    """Reads the index, which torch unpickles, without running code in it."""

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """Read the index. Raises CheckpointError if it holds more than an index does."""
        with open(Path(self.path) / INDEX, 'rb') as file:
            try:
                index: Metadata = IndexUnpickler(file).load()
            except (pickle.UnpicklingError, EOFError) as error:
                raise CheckpointError(f'{self.path}: its piece {INDEX} is damaged or no index ({error}).') from error
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


class IndexUnpickler(pickle.Unpickler):
    """Looks up nothing but what an index refers to."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a class. Raises UnpicklingError for others."""
        if name not in INDEXED.get(module, ()):
            raise pickle.UnpicklingError(f'{module}.{name} is refused')
        return super().find_class(module, name)
