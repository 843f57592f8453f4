"""The table of an evaluation: on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mkd_plugin.evaluation.protocols import Row

HEAD = ('protocol', 'setting', 'feature')


@dataclass
class EvaluationTable:
    """Rows of several checkpoints, side by side.

    Attributes:
        checkpoints: Column → what it is: its source, and what is known of its network once it is loaded.
        settings: What was asked for.
        rows: Column → its rows.
        failures: What could not be measured: column, protocol, reason.
    """

    checkpoints: dict[str, dict[str, Any]]
    settings: Mapping[str, Any]
    rows: dict[str, list[Row]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    def add(self, column: str, row: Row) -> None:
        """Take a row of a checkpoint."""
        self.rows.setdefault(column, []).append(row)

    def fail(self, column: str, protocol: str, reason: object) -> None:
        """Take note of what could not be measured."""
        self.failures.append(dict(checkpoint=column, protocol=protocol, reason=str(reason)))

    def lines(self) -> list[list[str]]:
        """Cells: protocol, setting, feature, then one for each checkpoint. The best of a line is not marked."""
        cells: dict[tuple[str, str, str], dict[str, str]] = {}
        for column, rows in self.rows.items():
            for row in rows:
                cells.setdefault((row.protocol, row.setting, row.feature), {})[column] = number(row)
        return [[*place, *(found.get(column, '–') for column in self.checkpoints)] for place, found in cells.items()]

    def notes(self) -> list[str]:
        """What columns are of, what holds for rows, and failures."""
        columns = [f'{name}: {about_network(about)}' for name, about in self.checkpoints.items() if 'format' in about]
        said = {
            f'{row.protocol}{f", {row.setting}" if math.isnan(row.top1) else ""}: {row.note}'
            for rows in self.rows.values()
            for row in rows
            if row.note
        }
        failed = [f'{entry["checkpoint"]}, {entry["protocol"]}: {entry["reason"]}' for entry in self.failures]
        return [*columns, *sorted(said), *failed]

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title='top-1, per cent', caption=escape('\n'.join(self.notes())), caption_justify='left')
        for name in (*HEAD, *self.checkpoints):
            table.add_column(escape(name), justify='left' if name in HEAD else 'right')
        for line in self.lines():
            table.add_row(*map(escape, line))
        return table

    def markdown(self) -> str:
        """For a page."""
        titles = [*HEAD, *self.checkpoints]
        ruler = [*['---'] * len(HEAD), *['---:'] * len(self.checkpoints)]
        lines = [f'| {" | ".join(map(in_cell, cells))} |' for cells in (titles, ruler, *self.lines())]
        notes = [f'- {" ".join(note.split())}' for note in self.notes()]
        return '\n'.join(['Top-1, per cent.', '', *lines, *([''] if notes else []), *notes]) + '\n'

    def json(self) -> str:
        """With every number and setting; what was not measured is null."""
        rows = [dict(checkpoint=column, **asdict(row)) for column, rows in self.rows.items() for row in rows]
        for row in rows:
            row['top1'] = None if math.isnan(row['top1']) else row['top1']
        found = dict(checkpoints=self.checkpoints, settings=dict(self.settings), rows=rows, failures=self.failures)
        return json.dumps(found, indent=1, ensure_ascii=False, default=str) + '\n'

    def write(self, folder: Path) -> None:
        """``evaluation.json`` and ``evaluation.md``, each whole or as it was."""
        for name, text in (('evaluation.json', self.json()), ('evaluation.md', self.markdown())):
            half = folder / f'{name}.{os.getpid()}'
            half.write_text(text)
            half.replace(folder / name)


def about_network(about: Mapping[str, Any]) -> str:
    """A network's format, image and pixels, and what was assumed of it."""
    height, width = about['image_hw']
    mean, std = (' '.join(f'{value:.4g}' for value in about[name]) for name in ('pixel_mean', 'pixel_std'))
    said = f'{about["format"]}, {height} × {width} px, mean {mean}, std {std}'
    return '; '.join([said, *about['notes']])


def number(row: Row) -> str:
    """A cell."""
    if math.isnan(row.top1):
        return 'not measured'
    return f'{row.top1:.1f}' if row.std is None else f'{row.top1:.1f} ± {row.std:.1f}'


def in_cell(text: str) -> str:
    """Without what ends a cell."""
    return text.replace('|', '\\|')


def short_names(paths: Sequence[str]) -> list[str]:
    """A column's title for each path: as many of its last parts as tell it from the others.

    Raises:
        ValueError: A path is given twice.
    """
    if len(set(paths)) < len(paths):
        raise ValueError(f'A checkpoint is given twice: {", ".join(paths)}.')
    parts = [Path(path).with_suffix('').parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def check_writable(folder: Path) -> None:
    """Make a folder, and raise ValueError if nothing can be written into it: before hours are spent, not after."""
    probe = folder / f'.writable.{os.getpid()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f'{folder} cannot be written to ({error.strerror}). Give another folder, or its rights.'
        ) from error
