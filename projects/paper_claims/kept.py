"""Results of jobs in one small file, so that another machine can continue an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mkd_plugin.reporting.store import Record, Store
from mkd_plugin.utils.files import plain

WITH_FILES = 'pretrain'  # begins the keys of jobs whose files other jobs read

Run = TypeVar('Run')


class KeptStore(Store):
    """A store that appends every result to a file, and reads results that are not in its folder from there.

    The file does not hold networks. So a pre-training in it counts as unfinished in another folder, and only its time is used.

    Args:
        folder: Folder of the results and of what jobs write.
        kept: File with one result a line, in JSON. The first result creates it.
    """

    def __init__(self, folder: str | Path, kept: Path) -> None:
        super().__init__(folder)
        self.kept = kept

    @cached_property
    def lines(self) -> dict[str, Record]:
        """Results that the file had when it was first read. Raises ValueError for a line that was cut off."""
        if not self.kept.is_file():
            return {}
        found = {}
        for number, line in enumerate(self.kept.read_text(encoding='utf-8').splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f'{self.kept}, line {number} is no JSON: a write was cut off. Delete the line.'
                ) from error
            key = row.pop('key')
            found[key] = Record(**row)
        return found

    def read(self, key: str) -> Record | None:
        """Return the result of a job, or None if it is not finished."""
        return super().read(key) or (None if key.startswith(WITH_FILES) else self.lines.get(key))

    def spent(self, key: str) -> float:
        """Return the seconds that a finished job took, here or elsewhere."""
        record = super().read(key) or self.lines.get(key)
        return record.seconds if record else 0.0  # of a run that was stopped before it wrote the line

    def write(self, key: str, name: str, value: Any, *, seconds: float = 0.0) -> Record:
        """Append the result of a job, in a single write, because other processes append too; then save it."""
        record = Record(name, round(seconds, 3), plain(value))
        line = json.dumps(dict(key=key, **asdict(record)), ensure_ascii=False)
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        with self.kept.open('ab', buffering=0) as file:
            file.write(f'{line}\n'.encode())
        return super().write(key, name, value, seconds=seconds)

    def needed(
        self, runs: Sequence[Run], key: Callable[[Run], str], dependencies: Callable[[Run], Iterable[Run]]
    ) -> list[Run]:
        """Leave out runs whose dependents are all finished, such as pre-trainings of measured networks.

        Args:
            runs: Each after those it depends on.
            key: Returns a run's key.
            dependencies: Returns the runs that a run depends on.
        """
        wanted = set(runs) - {earlier for run in runs for earlier in dependencies(run)}
        for run in reversed(runs):
            if run in wanted and self.read(key(run)) is None:
                wanted |= set(dependencies(run))
        return [run for run in runs if run in wanted]
