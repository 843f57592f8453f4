"""Results of jobs on disk: one folder per key, holding the result, the lock and whatever the job writes."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mkd_plugin.utils.files import lock_file, plain, write_whole

RESULT, SECONDS, LOCK = 'result.json', 'seconds.json', 'lock'


@dataclass(frozen=True)
class Record:
    """The result of a finished job."""

    name: str
    seconds: float  #: including attempts that were interrupted
    value: Any  #: what the job returned, as JSON values: tensors are lists, and non-finite numbers are None


def key_of(title: str, **content: Any) -> str:
    """Return a file name that identifies a result: a readable title and a digest of everything it depends on.

    ``content`` is JSON values. Pass the content of files (their digests), not their paths.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return f'{re.sub(r"[^A-Za-z0-9.-]+", "_", title)}-{digest[:16]}'


class Store:
    """Results under their keys, in a folder that must be writable. All writes are atomic: a result is complete or absent."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ValueError(
                f'Cannot write to {folder} ({error.strerror}). Give another output folder, or make this one writable.'
            ) from error

    def work_dir(self, key: str) -> Path:
        """Folder of a job. It exists once the job has been started."""
        return self.folder / key

    def read(self, key: str) -> Record | None:
        """Return the result of a job, or None if it is not finished."""
        path = self.work_dir(key) / RESULT
        return Record(**json.loads(path.read_text(encoding='utf-8'))) if path.is_file() else None

    def write(self, key: str, name: str, value: Any, *, seconds: float = 0.0) -> Record:
        """Save the result of a job and return it as ``read`` will."""
        self.work_dir(key).mkdir(parents=True, exist_ok=True)
        record = Record(name, round(seconds, 3), plain(value))
        text = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False)
        write_whole(self.work_dir(key) / RESULT, text + '\n')
        return Record(**json.loads(text))

    def add_seconds(self, key: str, seconds: float) -> float:
        """Add the time of an attempt; return the total."""
        path = self.work_dir(key) / SECONDS
        total = seconds + (float(json.loads(path.read_text())) if path.is_file() else 0.0)
        write_whole(path, json.dumps(round(total, 3)))
        return total

    def lock(self, key: str) -> AbstractContextManager[int | None]:
        """Lock a job; see :func:`mkd_plugin.utils.files.lock_file`."""
        folder = self.work_dir(key)
        folder.mkdir(parents=True, exist_ok=True)
        return lock_file(folder / LOCK)
