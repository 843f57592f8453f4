"""Result table of an evaluation, for the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mkd_plugin.evaluation.protocols import Row
from mkd_plugin.utils.files import plain, write_whole

HEAD = ('protocol', 'setting', 'feature')


@dataclass
class EvaluationTable:
    """Results of several checkpoints side by side."""

    checkpoints: dict[str, dict[str, Any]]  #: column → its source, and the details of the network once it is loaded
    settings: Mapping[str, Any]  #: arguments of the evaluation
    rows: dict[str, list[Row]] = field(default_factory=dict)  #: by column
    failures: list[dict[str, str]] = field(default_factory=list)  #: checkpoint, protocol, reason

    def fail(self, column: str, protocol: str, reason: object) -> None:
        """Record why something could not be measured."""
        self.failures.append(dict(checkpoint=column, protocol=protocol, reason=str(reason)))

    def unmeasured(self) -> list[str]:
        """Return the protocols without a single number for some checkpoint."""
        found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for column, rows in self.rows.items():
            for row in rows:
                found[column, row.protocol].append(row.top1)
        return [protocol for (_, protocol), numbers in found.items() if all(map(math.isnan, numbers))]

    def lines(self) -> list[list[str]]:
        """Return the cells of each line: protocol, setting, feature, then one number per checkpoint."""
        cells: dict[tuple[str, str, str], dict[str, str]] = {}
        for column, rows in self.rows.items():
            for row in rows:
                cells.setdefault((row.protocol, row.setting, row.feature), {})[column] = number(row)
        return [[*line, *(found.get(column, '–') for column in self.checkpoints)] for line, found in cells.items()]

    def notes(self) -> list[str]:
        """Return notes on the columns and rows, and the failures."""
        networks = self.checkpoints.items()
        columns = [f'{name}: {describe_network(about)}' for name, about in networks if 'format' in about]
        remarks = {
            f'{row.protocol}{f", {row.setting}" if math.isnan(row.top1) else ""}: {row.note}'
            for rows in self.rows.values()
            for row in rows
            if row.note
        }
        failed = [f'{entry["checkpoint"]}, {entry["protocol"]}: {entry["reason"]}' for entry in self.failures]
        return [*columns, *sorted(remarks), *failed]

    def rich(self) -> Table:
        table = Table(title='top-1, per cent', caption=escape('\n'.join(self.notes())), caption_justify='left')
        for name in (*HEAD, *self.checkpoints):
            table.add_column(escape(name), justify='left' if name in HEAD else 'right')
        for line in self.lines():
            table.add_row(*map(escape, line))
        return table

    def markdown(self) -> str:
        titles = [*HEAD, *self.checkpoints]
        ruler = [*['---'] * len(HEAD), *['---:'] * len(self.checkpoints)]
        escaped = [[text.replace('|', '\\|') for text in line] for line in (titles, ruler, *self.lines())]
        notes = [f'- {" ".join(note.split())}' for note in self.notes()]
        lines = [f'| {" | ".join(line)} |' for line in escaped]
        return '\n'.join(['Top-1, per cent.', '', *lines, *([''] if notes else []), *notes]) + '\n'

    def json(self) -> str:
        """Return all numbers and settings as JSON; a number that could not be measured is null."""
        rows = [dict(checkpoint=column, **asdict(row)) for column, rows in self.rows.items() for row in rows]
        found = dict(checkpoints=self.checkpoints, settings=dict(self.settings), rows=rows, failures=self.failures)
        return json.dumps(plain(found), indent=1, ensure_ascii=False, default=str) + '\n'

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``evaluation.md``."""
        write_whole(folder / 'evaluation.json', self.json())
        write_whole(folder / 'evaluation.md', self.markdown())


def describe_network(about: Mapping[str, Any]) -> str:
    """Describe a network by its format, image size, pixel statistics and assumptions."""
    height, width = about['image_hw']
    mean, std = (' '.join(f'{value:.4g}' for value in about[name]) for name in ('pixel_mean', 'pixel_std'))
    return '; '.join([f'{about["format"]}, {height} × {width} px, mean {mean}, std {std}', *about['notes']])


def number(row: Row) -> str:
    if math.isnan(row.top1):
        return 'not measured'
    return f'{row.top1:.1f}' if row.std is None else f'{row.top1:.1f} ± {row.std:.1f}'


def short_names(paths: Sequence[str]) -> list[str]:
    """Name each path by as many of its last parts as distinguish it from the others."""
    if len(set(paths)) < len(paths):
        raise ValueError(f'A checkpoint is given twice: {", ".join(paths)}.')
    parts = [Path(path).with_suffix('').parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
