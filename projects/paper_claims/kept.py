"""Results of jobs that are kept in the repository, so that another machine continues from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mkd_plugin.reporting.store import Record, Store

WITH_FILES = 'pretrain'  # kind of the jobs whose networks others read, with which their keys begin

Run = TypeVar('Run')


class KeptStore(Store):
    """A store that also adds every result to a file, one line each, and takes results from that file.

    The line of a pre-training only tells how long it took: its network is not kept, so the job is not done elsewhere.

    Args:
        folder: Folder of the results and of what jobs write.
        kept: File with one JSON value a line; it is made with its first line.
    """

    def __init__(self, folder: str | Path, kept: Path) -> None:
        super().__init__(folder)
        self.kept = kept

    @cached_property
    def lines(self) -> dict[str, Record]:
        """Results that the file had when it was first read."""
        if not self.kept.is_file():
            return {}
        rows = [json.loads(line) for line in self.kept.read_text(encoding='utf-8').splitlines()]
        return {row.pop('key'): Record(**row) for row in rows}

    def read(self, key: str) -> Record | None:
        """Return the result of a job, or None if it is not finished."""
        return super().read(key) or (None if key.startswith(WITH_FILES) else self.lines.get(key))

    def spent(self, key: str) -> float:
        """Return the seconds that a finished job took, here or elsewhere."""
        record = super().read(key) or self.lines[key]
        return record.seconds

    def write(self, key: str, name: str, value: Any, *, seconds: float = 0.0) -> Record:
        """Save the result of a job, and add its line in one write: other processes add theirs."""
        record = super().write(key, name, value, seconds=seconds)
        line = json.dumps(dict(key=key, **asdict(record)), ensure_ascii=False)
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        with self.kept.open('ab', buffering=0) as file:
            file.write(f'{line}\n'.encode())
        return record


def still_needed(runs: Sequence[Run], done: Container[Run], dependencies: Callable[[Run], Iterable[Run]]) -> list[Run]:
    """Leave out runs that nothing but finished runs depends on: their files may be on another machine.

    ``runs`` has every run after those it depends on.
    """
    read = {earlier for run in runs for earlier in dependencies(run)}
    wanted = set(runs) - read
    for run in reversed(runs):
        if run in wanted and run not in done:
            wanted |= set(dependencies(run))
    return [run for run in runs if run in wanted]
