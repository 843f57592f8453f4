"""What a checkpoint's container is, judged by its content, and limits on how far it may unfold."""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ['check_unfolded', 'is_safetensors', 'is_torchscript']

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
