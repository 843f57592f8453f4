"""What became of every tensor of a file, as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ['LoadReport', 'shorten']

ROWS = {
    'matched': 'loaded as they are',
    'resized': 'loaded after their grid was resized',
    'converted': 'of these, in another number format',
    'missing': 'of the network, not in the file',
    'dropped': 'known, and no part of this network',
    'unexpected': 'not known',
}


@dataclass
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: The file.
        format: What the file's names are of.
        prefix: Where in the file the network is.
        matched: Loaded as they are, by our names (so are resized, converted and missing ones).
        resized: Loaded after their grid was resized, or after one table was repeated for every block.
        converted: Those of both whose numbers have another format in the network.
        missing: Of the network, not in the file.
        dropped: In the file, known, and without a place in the network: heads, decoders, other networks.
        unexpected: In the file, and known to nothing.
        numbers: Which number formats were converted, as 'float16 → float32'.
    """

    source: str
    format: str = ''
    prefix: str = ''
    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> list[str]:
        """What the network got."""
        return [*self.matched, *self.resized]

    def table(self) -> Table:
        """The table for a console."""
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for column in ('tensors', 'number', 'which'):
            table.add_column(column, justify='right' if column == 'number' else 'left', overflow='fold')
        for name, meaning in ROWS.items():
            names = getattr(self, name)
            which = dict(matched='', converted=shorten(self.numbers)).get(name, shorten(names))
            table.add_row(f'{name}: {meaning}', str(len(names)), escape(which))
        return table

    def title(self) -> str:
        """The line above it."""
        place = f", under '{self.prefix}'" if self.prefix else ''
        return f'loaded {self.source} ({self.format}{place})'

    def __str__(self) -> str:
        return f'{self.title()}\n{render(self.table())}'


def render(table: Table, width: int = 140) -> str:
    """A table as plain text."""
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return '\n'.join(line.rstrip() for line in text.getvalue().splitlines())


def shorten(names: Sequence[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ', '.join(names[:most]) + (f' and {rest} more' if rest > 0 else '')
