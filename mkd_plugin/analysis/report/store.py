"""Results on the disk, a file each, so that a run that was interrupted goes on with what is done."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mkd_plugin.analysis.report.images import ImageSet
from mkd_plugin.analysis.report.settings import MEASUREMENTS, Settings
from mkd_plugin.utils.files import plain, write_whole

LAYOUT = 1  # of a result; raised when what is measured under the same settings changes


class Store:
    """The folder of a report.

    Args:
        folder: Made if it is not there.

    Raises:
        ValueError: Nothing can be written there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        try:
            (self.folder / 'results').mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder / 'results'):
                pass
        except OSError as error:
            raise ValueError(
                f'--out {folder}: nothing can be written there ({error.strerror}). Name another folder, or make it writable.'
            ) from error

    def path(self, title: str, measurement: str, identities: list[str], images: ImageSet, settings: Settings) -> Path:
        """Where a result lies; its name says of which networks, images and settings it is."""
        used = {name: asdict(settings)[name] for name in MEASUREMENTS[measurement]}
        key = hashlib.sha256(json.dumps([LAYOUT, measurement, identities, images.digest, used]).encode()).hexdigest()
        return self.folder / 'results' / f'{re.sub(r"[^A-Za-z0-9.]+", "_", title)}-{measurement}-{key[:12]}.json'

    def read(self, path: Path) -> dict[str, Any] | None:
        """A result; None if it is not there."""
        return dict(json.loads(path.read_text())) if path.is_file() else None

    def write(self, path: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a result. Returns it as it will be read."""
        text = json.dumps(plain(result), allow_nan=False)
        write_whole(path, text)
        return dict(json.loads(text))
