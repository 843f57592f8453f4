"""Count files and lines of the package: ``make figures`` prints them, tests/unit/test_architecture.py bounds them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Figures:
    """Lines of each Python file of a folder."""

    lines: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.lines.values())

    @property
    def median(self) -> float:
        return statistics.median(self.lines.values())

    @property
    def longest(self) -> tuple[str, int]:
        return max(self.lines.items(), key=lambda item: item[1])

    def __str__(self) -> str:
        name, most = self.longest
        return f'{len(self.lines):4} files {self.total:6} lines   median {self.median:5g}   longest {most:4} {name}'


def count_lines(folder: Path) -> Figures:
    """Count the lines of every ``*.py`` below a folder; names are relative to the checkout."""
    paths = sorted(folder.rglob('*.py'))
    return Figures({str(path.relative_to(ROOT)): len(path.read_text(encoding='utf-8').splitlines()) for path in paths})


def print_figures() -> None:
    """Print the package, then each of its rooms, then what lies beside it."""
    package = ROOT / 'mkd_plugin'
    rooms = [path for path in sorted(package.iterdir()) if path.is_dir() and any(path.rglob('*.py'))]
    beside = [ROOT / name for name in ('mkd_cli', 'tools', 'benchmarks', 'projects', 'tests')]
    for folder in (package, *rooms, *(path for path in beside if path.is_dir())):
        print(f'{str(folder.relative_to(ROOT)):24}{count_lines(folder)}')


if __name__ == '__main__':
    print_figures()
