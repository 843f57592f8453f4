"""Checkpoint loaders for every scheme of mmengine that run no code of a file."""

from __future__ import annotations

import difflib
import functools
import io
from collections.abc import Callable
from typing import Any

import torch
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mkd_plugin.checkpoint.download import download
from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.compat.weights import remember_file

Loader = Callable[..., dict[str, Any]]


class SafeTorch:
    """torch as mmengine's module of loaders sees it: ``load`` runs no code of a file."""

    load = staticmethod(lambda file, map_location=None, **_: read_checkpoint(file, map_location))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a local file, or a folder of Hugging Face."""
    return read_checkpoint(filename, map_location)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Load a file from the web; it is cached in torch's download folder."""
    return read_checkpoint(download(filename, model_dir, progress=progress), map_location)


def load_from_ceph(filename: str, map_location: Any = None, backend: str = 'petrel') -> dict[str, Any]:
    """Load ``s3://…`` or ``petrel://…`` through mmengine's client of the object store."""
    content = get_file_backend(filename, backend_args={'backend': backend}).get(filename)
    return read_checkpoint(filename, map_location, content=io.BytesIO(content))


# By the names of mmengine's.
OURS: dict[str, Loader] = {loader.__name__: loader for loader in (load_from_local, load_from_http, load_from_ceph)}
# mmengine's functions that return the addresses of a scheme.
LISTS = {
    **dict.fromkeys(('modelzoo', 'torchvision'), 'get_torchvision_models'),
    **dict.fromkeys(('open-mmlab', 'openmmlab'), 'get_external_models'),
    'mmcls': 'get_mmcls_models',
}


def safe(loader: Loader) -> Loader:
    """Wrap a loader so that it drops ``meta['config']`` of old files, and notes the file of the tensors.

    mmengine *executes* that text on resume, only to read ``gpu_ids``, which today's runs do not use. The wrapper raises
    ValueError if the list of the address's scheme has no such name.
    """

    @functools.wraps(loader)  # mmengine logs the name
    def load(filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            checkpoint = loader(filename, *args, **kwargs)
        except KeyError as error:
            scheme, _, name = filename.partition('://')
            if scheme not in LISTS:
                raise
            close = difflib.get_close_matches(name, getattr(mmengine_checkpoint, LISTS[scheme])(), n=3, cutoff=0.4)
            raise ValueError(
                f'{filename}: the list of this scheme has no such name. The closest it has: {close}.'
            ) from error
        meta = checkpoint.get('meta')
        if isinstance(meta, dict):
            meta.pop('config', None)
        remember_file(checkpoint, filename)
        return checkpoint

    load.__module__ = __name__
    return load


def install_safe_loader() -> None:
    """Make mmengine read every checkpoint, from any source, with :func:`read_checkpoint`.

    onedl-mmengine falls back to ``weights_only=False`` when the safe load fails, so that a hostile file can run code through
    ``load_from``, ``--resume`` and ``init_cfg``; upstream's mmengine refuses every ordinary training checkpoint.
    """
    mmengine_checkpoint.torch, mmengine_checkpoint.load_from_http = SafeTorch(), load_from_http
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if loader.__module__ != __name__:
            ours = safe(OURS.get(loader.__name__, loader))
            CheckpointLoader.register_scheme(prefixes=prefix, loader=ours, force=True)
