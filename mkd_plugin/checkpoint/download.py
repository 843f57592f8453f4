"""Files from the web, cached by their whole address."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse

import torch
from mmengine.dist import barrier, is_main_process

WEB = ('http://', 'https://')
# Released files often end in the first digits of their sha256; eight decimal digits alone may be a date.
DIGEST = re.compile(r'[-_](?![0-9]{8}\.)([0-9a-f]{8,64})\.[a-z]+')


def cached_path(address: str, folder: str | Path | None = None) -> Path:
    """Return where the file of a web address is, or will be, on this machine.

    Two addresses never have the same place, even if their files have the same name.

    Args:
        address: ``http://…`` or ``https://…``.
        folder: Where downloads are kept; torch's folder by default.
    """
    name = Path(unquote(urlparse(address).path)).name.lstrip('.') or 'file'
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    return Path(folder or Path(torch.hub.get_dir(), 'checkpoints')) / key / name


def download(address: str, folder: str | Path | None = None, *, progress: bool = True) -> Path:
    """Download a file unless it is there already, on the first process; the others wait.

    Raises:
        OSError: The address gives no file.
        ValueError: The content is not the one whose sha256 the file's name has.
    """
    path = cached_path(address, folder)
    try:
        if is_main_process() and not path.is_file():
            fetch(address, path, progress=progress)
    finally:
        barrier()  # also if it fails, or the others would wait for ever
    if not path.is_file():  # on another node, with a disk of its own
        fetch(address, path, progress=progress)
    return path


def local_file(path: str | Path) -> str | Path:
    """Return a path as it is, and the downloaded copy of a web address."""
    return download(str(path)) if str(path).startswith(WEB) else path


def fetch(address: str, path: Path, *, progress: bool) -> None:
    """Download a file, whole or not at all; errors as of :func:`download`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = DIGEST.search(path.name)
    try:
        torch.hub.download_url_to_file(address, str(path), stated and stated[1], progress)
    except HTTPError as error:
        raise OSError(f'{address}: {error}') from error
    except RuntimeError as error:  # another sha256
        raise ValueError(f'{address}: {error}. Its name says which sha256 it should have. Try again.') from error
