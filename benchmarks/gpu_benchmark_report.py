"""Write the results of gpu_benchmark.py as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Rows of the section `step` that do not build on the one before, and what they are compared with.
BASES = {'compiled loss instead, without these options': 'crops resized on the device, as in training'}
HIDDEN = ('section', 'row', 'event', 'top', 'error', 'skipped')


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """One table per section, with what failed below it."""
    parts = []
    for section in dict.fromkeys(line['section'] for line in lines):
        own = [line for line in lines if line['section'] == section]
        rows = [line for line in own if 'row' in line and not {'error', 'skipped'} & line.keys()]
        seconds = next((f', {line["took"]:.0f} s' for line in own if line.get('event') == 'end'), '')
        parts.append(f'### {section}{seconds}\n')
        if rows:
            gains = gains_of(own) if section == 'step' else {}
            parts.append(table_of([{**row, **gains.get(row['row'], {})} for row in rows]))
        parts += [kernels(line) for line in rows if 'top' in line]
        for line in own:
            for kind in ('error', 'skipped'):
                if kind in line:
                    parts.append(f'- {kind}: {line.get("row", "the section")}: {line[kind]}\n')
    return '\n'.join(parts)


def gains_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What each row gains over the one before it (or its base) and over the first, if these have a result."""
    rates = {line['row']: line.get('images_per_s') for line in lines if 'row' in line}
    names, gains = list(rates), {}
    for before, name in zip([*names[:1], *names], names, strict=False):
        others = dict(gain=rates.get(BASES.get(name, before)), all=rates[names[0]])
        gains[name] = {kind: rates[name] / other for kind, other in others.items() if other and rates[name]}
    return gains


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as a table; its columns are what any of them has."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in HIDDEN]
    lines = [['', *(column.replace('_', ' ') for column in columns)], ['---'] * (len(columns) + 1)]
    lines += [[str(row['row']), *(cell(row.get(column)) for column in columns)] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def cell(value: Any) -> str:
    """Write a value: numbers with four significant digits."""
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return '' if value is None else str(value)


def kernels(line: Mapping[str, Any]) -> str:
    """Write the kernels that take longest."""
    rows = [dict(row=f'`{name}`', ms_a_step=ms, calls_a_step=calls) for name, ms, calls in line['top']]
    return f'Longest kernels, {line["row"]}:\n\n{table_of(rows)}'
