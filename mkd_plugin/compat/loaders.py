"""Checkpoint loaders for every scheme of mmengine that run no code of a file."""

from __future__ import annotations

import difflib
import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mkd_plugin.checkpoint.download import download
from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.compat.weights import remember_file

Loader = Callable[..., dict[str, Any]]


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    return read_checkpoint(filename, map_location)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Load a file from the web; it is cached in torch's download folder."""
    return read_checkpoint(download(filename, model_dir, progress=progress), map_location)


def load_from_torchvision(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load ``torchvision://NAME``, whose address is in torchvision's list."""
    return load_from_http(look_up(filename, mmengine_checkpoint.get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load ``openmmlab://NAME``: mmengine's list has an address, or a file in mmengine's own folder."""
    scheme, _, name = filename.partition('://')
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    place = look_up(f'{scheme}://{name}', mmengine_checkpoint.get_external_models())
    if place.startswith(('http://', 'https://')):
        return load_from_http(place, map_location)
    return read_checkpoint(Path(mmengine_checkpoint._get_mmengine_home(), place), map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load ``mmcls://NAME``: the backbone of a classifier in mmengine's list."""
    checkpoint = load_from_http(look_up(filename, mmengine_checkpoint.get_mmcls_models()), map_location)
    return dict(mmengine_checkpoint._process_mmcls_checkpoint(checkpoint))


def load_from_ceph(filename: str, map_location: Any = None, backend: str = 'petrel') -> dict[str, Any]:
    """Load ``s3://…`` or ``petrel://…`` through mmengine's client of the object store."""
    content = get_file_backend(filename, backend_args={'backend': backend}).get(filename)
    return read_checkpoint(filename, map_location, content=io.BytesIO(content))


def load_from_pavi(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load ``pavi://…`` through the client of that model cloud."""
    from pavi import modelcloud

    model = modelcloud.get(filename.removeprefix('pavi://'))
    with TemporaryDirectory() as folder:
        path = Path(folder, model.name)
        model.download(str(path))
        return read_checkpoint(path, map_location)


LOADERS: dict[tuple[str, ...], Loader] = {
    ('',): load_from_local,
    ('http://', 'https://'): load_from_http,
    ('modelzoo://', 'torchvision://'): load_from_torchvision,
    ('open-mmlab://', 'openmmlab://'): load_from_openmmlab,
    ('mmcls://',): load_from_mmcls,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_ceph,
    ('pavi://',): load_from_pavi,
}


def look_up(filename: str, places: Mapping[str, str]) -> str:
    """Return the address of ``scheme://NAME``. Raises ValueError if the list has no such name."""
    name = filename.partition('://')[2]
    if name not in places:
        close = difflib.get_close_matches(name, places, n=3, cutoff=0.4)
        raise ValueError(f'{filename}: the list of this scheme has no such name. The closest it has: {close}.')
    return places[name]


def without_script(loader: Loader) -> Loader:
    """Wrap a loader so that it drops ``meta['config']`` of old files, and notes the file of the tensors.

    mmengine *executes* that text on resume, only to read ``gpu_ids``, which today's runs do not use.
    """

    @functools.wraps(loader)  # mmengine logs the name
    def load(filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = loader(filename, *args, **kwargs)
        meta = checkpoint.get('meta')
        if isinstance(meta, dict):
            meta.pop('config', None)
        remember_file(checkpoint, filename)
        return checkpoint

    return load


def install_safe_loader() -> None:
    """Make mmengine read every checkpoint, from any source, with :func:`read_checkpoint`.

    onedl-mmengine falls back to ``weights_only=False`` when the safe load fails, so that a hostile file can run code through
    ``load_from``, ``--resume`` and ``init_cfg``; upstream's mmengine refuses every ordinary training checkpoint.
    """
    for prefixes, loader in LOADERS.items():
        CheckpointLoader.register_scheme(prefixes=prefixes, loader=without_script(loader), force=True)
