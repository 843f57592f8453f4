"""Make the tables, figures and JSON files of docs/analyze.md from an analysis of checkpoints and two sweeps.

    python tools/docs/curves.py ANALYSIS RATES FROZEN [--out docs/curves]

ANALYSIS is an output folder of tools/analyze.py with hessian and landscape of the checkpoints of several runs, RATES and FROZEN
are output folders of tools/sweep.py. The tables are put between the marks of docs/analyze.md.
tests/integration/docs/test_docs_curves.py compares them with the JSON.
"""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkd_plugin.reporting.analysis import Report
from mkd_plugin.reporting.analysis.sections import sections_of
from mkd_plugin.reporting.benchmark.page import cell
from mkd_plugin.reporting.figures import sweep_figure
from mkd_plugin.utils.files import write_whole

PAGE = Path('docs/analyze.md')
SHARED = runpy.run_path(str(Path(__file__).with_name('analysis.py')))
PANELS = {'largest eigenvalue': 'eigenvalue', 'trace': 'trace', 'rise of the loss': 'rise'}  # of 'Over training' → file
LANDSCAPES = {'teacher/iter_400': 'landscape_teacher', 'student/iter_400': 'landscape_student'}
KEPT = ('head', 'loss', 'parameters', 'eigenvalues', 'eigenvalues_converged', 'trace', 'trace_standard_error')

Found = Mapping[str, Any]


def classifier_table(report: Found) -> str:
    """One row per checkpoint."""
    lines = ['| checkpoint | loss | largest eigenvalue | trace | rise of the loss |', '| --- | --- | --- | --- | --- |']
    for name, of in report['results'].items():
        hessian, losses = of['hessian'], of['landscape']['losses']
        middle = losses[len(losses) // 2][len(losses) // 2]
        rises = sorted(loss - middle for row in losses for loss in row)
        lines.append(
            f'| {name} | {hessian["loss"]:.3f} | {max(hessian["eigenvalues"]):.1f} | {hessian["trace"]:.0f} ± '
            f'{hessian["trace_standard_error"]:.0f} | {rises[len(rises) // 2]:.2f} |'
        )
    return '\n'.join(lines)


def sweep_table(report: Found) -> str:
    """One row per start, one column per value."""
    values = list(dict.fromkeys(value for of in report['scores'].values() for value in of))
    lines = [f'| {report["axes"][0]} | {" | ".join(values)} |', f'| --- |{" --- |" * len(values)}']
    for start, of in report['scores'].items():
        cells = [cell(of[value]) for value in values]
        lines.append(f'| {start} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def tables(folder: Path) -> dict[str, str]:
    """Mark of the page → table, from the JSON files of a folder."""
    found = {name: json.loads((folder / f'{name}.json').read_text()) for name in ('training', 'rates', 'frozen')}
    return {
        'training': classifier_table(found['training']),
        'rates': sweep_table(found['rates']),
        'frozen': sweep_table(found['frozen']),
    }


def save_figures(report: Report, out: Path) -> None:
    """Save the figures over training, and the landscapes of the last checkpoints."""
    sections = {section.title: section for section in sections_of(report, None)}
    for panel in sections['Over training'].panels:
        panel.figure.savefig(out / f'{PANELS[panel.alt_text.partition(" over training")[0]]}.png', dpi=90)
    for model, panel in zip(report.results, sections['Loss landscapes'].panels, strict=True):
        if model in LANDSCAPES:
            panel.figure.savefig(out / f'{LANDSCAPES[model]}.png', dpi=90)


def main() -> None:
    """Write figures, JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('analysis', type=Path, help='output folder of tools/analyze.py')
    parser.add_argument('rates', type=Path, help='output folder of tools/sweep.py --rates')
    parser.add_argument('frozen', type=Path, help='output folder of tools/sweep.py --frozen')
    parser.add_argument('--out', type=Path, default=Path('docs/curves'), help='default: %(default)s')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    report = json.loads((args.analysis / 'report.json').read_text())
    save_figures(Report(**report), args.out)
    for of in report['results'].values():
        of['hessian'] = {key: of['hessian'][key] for key in KEPT}
    report['data'].pop('files')
    write_whole(args.out / 'training.json', json.dumps(SHARED['shortened'](report), separators=(',', ':')) + '\n')
    for name in ('rates', 'frozen'):
        sweep = json.loads((getattr(args, name) / 'sweep.json').read_text())
        sweep_figure(sweep).savefig(args.out / f'{name}.png', dpi=90)
        write_whole(args.out / f'{name}.json', json.dumps(SHARED['shortened'](sweep), indent=1) + '\n')
    text = PAGE.read_text()
    for mark, table in tables(args.out).items():
        text = SHARED['fill'](text, mark, table)
    write_whole(PAGE, text)


if __name__ == '__main__':
    main()
