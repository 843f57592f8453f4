"""Make the tables, figures and JSON files of docs/analysis.md from a report and an evaluation.

    python tools/docs/analysis.py REPORT EVALUATION [--out docs/analysis]

REPORT is an output folder of tools/analyze.py, EVALUATION one of tools/evaluate.py; both may be docs/analysis itself. The
tables are printed, and put between the marks of the page next to the output folder if it exists.
tests/integration/docs/test_docs_analysis.py compares them with the JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mkd_plugin.reporting.analysis import Report
from mkd_plugin.reporting.analysis.sections import sections_of
from mkd_plugin.reporting.page import without_folders
from mkd_plugin.utils.files import write_whole

DIGITS = 5  # significant digits that are kept
# Figure of the page → section of the report, index of the panel.
FIGURES = {
    'distance': ('Attention distance', 0),
    'nmi': ('NMI of queries and keys', 0),
    'fourier': ('Fourier spectra of the feature maps', 0),
    'landscape_teacher0': ('Loss landscapes', 1),
    'landscape_stage1': ('Loss landscapes', 2),
}
RING = 0.2  # distance at which the rise of the loss is read

Found = Mapping[str, Any]


def mean_of(layer: Found, key: str) -> float:
    """Mean over heads."""
    return float(np.mean(layer[key]))


def rise(landscape: Found) -> float:
    """Mean loss at ±0.2 along either direction, minus the loss in the middle."""
    losses, steps = np.array(landscape['losses']), np.array(landscape['steps'])
    middle = len(steps) // 2
    ring = [index for index, step in enumerate(steps) if math.isclose(abs(step), RING, abs_tol=1e-6)]
    around = [losses[index, middle] for index in ring] + [losses[middle, index] for index in ring]
    return float(np.mean(around) - losses[middle, middle])


def first_and_last(layers: Found, value: Callable[[Any], float], form: str) -> str:
    """Values of the first and last block."""
    blocks = [layer for name, layer in layers.items() if name.startswith('block:')]
    return f'{value(blocks[0]):{form}} → {value(blocks[-1]):{form}}'


COLUMNS: dict[str, Callable[[Found], str]] = {
    'distance, px': lambda of: first_and_last(of['attention'], lambda layer: mean_of(layer, 'distance_H'), '.1f'),
    'NMI': lambda of: first_and_last(of['attention'], lambda layer: mean_of(layer, 'nmi_H'), '.3f'),
    'highest frequency': lambda of: first_and_last(of['fourier'], lambda layer: layer['relative_F'][-1], '.2f'),
    'token spectrum': lambda of: first_and_last(
        of['token-spectrum']['layers'], lambda layer: mean_of(layer, 'relative_R'), '.2f'
    ),
    'image spectrum': lambda of: first_and_last(
        of['image-spectrum'], lambda layer: mean_of(layer, 'relative_R'), '.2f'
    ),
    'largest eigenvalue': lambda of: f'{max(of["hessian"]["eigenvalues"]):.3g}',
    'trace': lambda of: f'{of["hessian"]["trace"]:.3g} ± {of["hessian"]["trace_standard_error"]:.2g}',
    'rise at 0.2': lambda of: f'{rise(of["landscape"]):.3f}',
}


NEEDS = {'largest eigenvalue': 'hessian', 'trace': 'hessian', 'rise at 0.2': 'landscape'}


def numbers_table(report: Found) -> str:
    """One row per network; curvature is included if all networks have it."""
    results = report['results']
    columns = [name for name in COLUMNS if all(NEEDS.get(name, 'attention') in of for of in results.values())]
    rows = [['', *columns], ['---', *['---'] * len(columns)]]
    rows += [[model, *(COLUMNS[name](of) for name in columns)] for model, of in results.items()]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def evaluation_table(found: Found) -> str:
    """One column per network, one row per number."""
    names = list(found['checkpoints'])
    rows: dict[str, dict[str, str]] = {}
    for row in found['rows']:
        spread = '' if row['std'] is None else f' ± {row["std"]:.1f}'
        name = f'{row["protocol"]}, {row["setting"]}, {row["feature"]}'
        rows.setdefault(name, {})[row['checkpoint']] = f'{row["top1"]:.1f}{spread}'
    lines = [['', *names], ['---', *['---'] * len(names)]]
    lines += [[title, *(cells[name] for name in names)] for title, cells in rows.items()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def fill(page: str, mark: str, table: str) -> str:
    """Put a table between the marks of a page. Raises ValueError if there are none."""
    pattern = rf'(<!-- {mark} -->\n).*?(<!-- end -->)'
    filled, count = re.subn(pattern, lambda match: f'{match[1]}\n{table}\n\n{match[2]}', page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f'The page has {count} places <!-- {mark} --> … <!-- end -->; it needs one.')
    return filled


def shortened(value: Any) -> Any:
    """Shorten numbers to five digits and absolute paths to file names."""
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shortened(inner) for inner in value]
    if isinstance(value, str):
        return without_folders(value)
    return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def trimmed(report: dict[str, Any]) -> dict[str, Any]:
    """Drop attention maps and everything that follows from the rest."""
    for found in report['results'].values():
        found.pop('maps', None)
        found.get('hessian', {}).pop('curve', None)  # computed from the nodes
        for layers in (found['token-spectrum']['layers'], found['image-spectrum']):
            for layer in layers.values():
                layer.pop('log_R', None)
    report['data'].pop('files', None)
    short: dict[str, Any] = shortened(report)
    return short


def save_figures(report: Report, out: Path) -> None:
    """Save the panels of ``FIGURES`` as PNG."""
    for results in report.results.values():
        results.pop('maps', None)  # the only figures that need the images
    sections = {section.title: section for section in sections_of(report, None)}
    for name, (title, place) in FIGURES.items():
        sections[title].panels[place].figure.savefig(out / f'{name}.png', dpi=90)


def main() -> None:
    """Write figures, JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('report', type=Path, help='output folder of tools/analyze.py')
    parser.add_argument('evaluation', type=Path, help='output folder of tools/evaluate.py')
    parser.add_argument('--out', type=Path, default=Path('docs/analysis'), help='default: %(default)s')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = json.loads((args.report / 'report.json').read_text())
    save_figures(Report(**found), args.out)
    report, evaluation = trimmed(found), json.loads((args.evaluation / 'evaluation.json').read_text())
    write_whole(args.out / 'report.json', json.dumps(report, separators=(',', ':')) + '\n')
    write_whole(args.out / 'evaluation.json', json.dumps(shortened(evaluation), separators=(',', ':')) + '\n')
    tables = {'numbers': numbers_table(report), 'evaluation': evaluation_table(evaluation)}
    page = args.out.with_suffix('.md')
    if page.is_file():
        text = page.read_text()
        for mark, table in tables.items():
            text = fill(text, mark, table)
        write_whole(page, text)
    print('\n\n'.join(tables.values()))


if __name__ == '__main__':
    main()
