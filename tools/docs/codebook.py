"""Make the table of docs/analysis.md on a codebook or a fully connected head, and its JSON, from an analysis.

    python tools/docs/codebook.py REPORT [--out docs/analysis]

REPORT is an output folder of tools/analyze.py for the networks MAE, codebook and connected.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from mkd_plugin.utils.files import write_whole

TEACHER, STUDENTS = 'MAE', ('connected', 'codebook')


def numbers(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return means over heads of attention distance and NMI, and the CKA of the same layers of teacher and student."""
    attention = {
        name: {
            layer: dict(distance=round(fmean(one['distance_H']), 2), nmi=round(fmean(one['nmi_H']), 3))
            for layer, one in found['attention'].items()
        }
        for name, found in report['results'].items()
    }
    pairs = {pair['second']: pair for pair in report['pairs'] if pair['first'] == TEACHER}
    similarity = {
        f'{TEACHER}, {name}': {
            layer: round(pairs[name]['values_RS'][place][place], 3) for place, layer in enumerate(pairs[name]['rows'])
        }
        for name in STUDENTS
    }
    data = dict(scans=report['data']['images'], of=report['data']['of'])
    return dict(data=data, attention=attention, similarity=similarity)


def table(found: Mapping[str, Any]) -> str:
    """Return the table, a row for each block."""
    lines = [
        '| block | CKA, fully connected | CKA, codebook | distance, teacher | fully connected | codebook |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for number, layer in enumerate(found['attention'][TEACHER], 1):
        similar = [f'{found["similarity"][f"{TEACHER}, {name}"][layer]:.2f}' for name in STUDENTS]
        distances = [f'{found["attention"][name][layer]["distance"]:.1f}' for name in (TEACHER, *STUDENTS)]
        lines.append(f'| {" | ".join([str(number), *similar, *distances])} |')
    return '\n'.join(lines)


def filled(page: str, found: Mapping[str, Any]) -> str:
    """Put the table between its marks on the page."""
    head, rest = page.split('<!-- codebook -->\n')
    _, tail = rest.split('<!-- end -->', 1)
    return f'{head}<!-- codebook -->\n\n{table(found)}\n\n<!-- end -->{tail}'


def main() -> None:
    """Write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('report', type=Path, help='output folder of tools/analyze.py')
    parser.add_argument('--out', type=Path, default=Path('docs/analysis'), help='default: %(default)s')
    args = parser.parse_args()
    found = numbers(json.loads((args.report / 'report.json').read_text()))
    write_whole(args.out / 'codebook.json', json.dumps(found, indent=1) + '\n')
    page = args.out.with_suffix('.md')
    write_whole(page, filled(page.read_text(), found))


if __name__ == '__main__':
    main()
