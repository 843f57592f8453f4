"""Read plain docstrings as reStructuredText: `|x|` is no substitution, and an indented block after a colon is code."""

from __future__ import annotations

import re
from typing import Any


def to_rst(lines: list[str]) -> list[str]:
    """Escape bars, and turn `text:` before a blank line and an indented block into `text::`."""
    escaped = [re.sub(r'(?<!`)\|(?!`)', r'\\|', line) for line in lines]
    for number, line in enumerate(escaped[:-2]):
        follows = escaped[number + 2]
        deeper = len(follows) - len(follows.lstrip()) > len(line) - len(line.lstrip())
        introduces = line.endswith(':') and not line.endswith('::') and not escaped[number + 1].strip()
        if introduces and follows.strip() and deeper:
            escaped[number] = f'{line}:'
    return escaped


def on_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place, before napoleon reads its sections."""
    lines[:] = to_rst(lines)


def setup(app: Any) -> dict[str, Any]:
    """Register the hook."""
    app.connect('autodoc-process-docstring', on_docstring, priority=100)
    return dict(parallel_read_safe=True)
