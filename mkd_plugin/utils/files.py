"""Reports on the disk."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: it is whole or not there."""
    half = path.with_name(f'{path.name}.{os.getpid()}')
    half.write_text(text, encoding='utf-8')
    half.replace(path)


def plain(value: Any) -> Any:
    """The same for JSON: tensors as lists, and None for what is no finite number."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
