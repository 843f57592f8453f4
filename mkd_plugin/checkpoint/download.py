"""Files from the web, cached by their whole address."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from mmengine.dist import barrier, get_dist_info

from mkd_plugin.utils.files import sha256_of

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
        if get_dist_info()[0] == 0 and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f'{path.name}.part')
            torch.hub.download_url_to_file(address, str(part), progress=progress)
            check_digest(part, address, path.name)
            part.replace(path)
    finally:
        barrier()  # also if it fails, or the others would wait for ever
    return path


def local_file(path: str | Path) -> str | Path:
    """Return a path as it is, and the downloaded copy of a web address."""
    return download(str(path)) if str(path).startswith(WEB) else path


def check_digest(file: Path, address: str, name: str) -> None:
    """Delete a file and raise ValueError if its name states another sha256 than its content has."""
    stated = DIGEST.search(name)
    if stated is not None and not (found := sha256_of(file)).startswith(stated[1]):
        file.unlink()
        raise ValueError(f'{address} gave a file with the sha256 {found}, but its name says {stated[1]}. Try again.')
