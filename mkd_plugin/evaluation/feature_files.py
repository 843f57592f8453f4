"""Files of features for use with other tools: NumPy's .npz, Parquet, safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mkd_plugin.evaluation.features import Features
from mkd_plugin.evaluation.images import LabelledImages
from mkd_plugin.utils.files import move_into_place, remove_path

Arrays = Mapping[str, 'np.ndarray[Any, Any]']


def write_features(path: Path, features: Features, images: LabelledImages) -> dict[str, tuple[int, ...]]:
    """Write features beside the images' names, labels and classes, and return the shape of each feature.

    The suffix of the file chooses the format; :func:`check_feature_file` has the errors.

    * ``.npz``: one array per feature, such as ``block:-1_mean`` (N, D); ``names`` (N,), ``labels`` (N,) and ``classes``.
    * ``.parquet``: one row per image: ``name``, ``label`` and one column of lists per feature.
    * ``.safetensors``: one tensor per feature and ``labels``; ``names`` and ``classes`` as JSON in the metadata.
    """
    check_feature_file(path)
    arrays = {f'{feature.tap}_{feature.pool}': values.numpy() for feature, values in features.values.items()}
    temporary = path.with_name(f'.{path.stem}.tmp{path.suffix}')
    try:
        WRITERS[path.suffix](temporary, arrays, images.names, images.labels.numpy(), images.classes)
        move_into_place(temporary, path)
    finally:
        remove_path(temporary)
    return {name: array.shape for name, array in arrays.items()}


def check_feature_file(path: Path) -> None:
    """Raise ValueError unless features can be written to a file of this name."""
    if path.suffix not in WRITERS:
        raise ValueError(f'--out {path}: give a file that ends in {", ".join(WRITERS)}.')
    if path.is_dir():
        raise ValueError(f'--out {path} is a folder, and writing would replace all that is in it. Name a file.')
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not existing.is_dir():
        raise ValueError(f'--out {path}: {existing} is a file, not a folder.')
    if path.suffix == '.parquet' and find_spec('pyarrow') is None:
        raise ValueError(f'--out {path}: Parquet needs pyarrow: pip install pyarrow. Or write .npz or .safetensors.')


def write_npz(path: Path, arrays: Arrays, names: Sequence[str], labels: Any, classes: Sequence[str]) -> None:
    values: dict[str, Any] = dict(arrays, names=np.array(names), labels=labels, classes=np.array(classes, dtype=str))
    np.savez(path, **values)


def write_parquet(path: Path, arrays: Arrays, names: Sequence[str], labels: Any, classes: Sequence[str]) -> None:
    """Write Parquet; tokens of an image become one long list, with the shape in the schema's metadata."""
    import pyarrow
    from pyarrow import parquet

    columns = {'name': pyarrow.array(names), 'label': pyarrow.array(labels)}
    for name, array in arrays.items():
        flat = pyarrow.array(np.ascontiguousarray(array).reshape(-1))
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(flat, array[0].size)
    shapes = {name: list(array.shape[1:]) for name, array in arrays.items()}
    about = {'classes': json.dumps(list(classes)), 'shapes': json.dumps(shapes)}
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), path)


def write_safetensors(path: Path, arrays: Arrays, names: Sequence[str], labels: Any, classes: Sequence[str]) -> None:
    about = {'names': json.dumps(list(names)), 'classes': json.dumps(list(classes))}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file({**tensors, 'labels': labels}, path, metadata=about)


WRITERS: dict[str, Callable[..., None]] = {
    '.npz': write_npz,
    '.parquet': write_parquet,
    '.safetensors': write_safetensors,
}
