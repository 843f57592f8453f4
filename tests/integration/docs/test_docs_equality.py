"""docs/equality.md is what the tool writes from the committed figures, and these are of the script's own networks."""

from __future__ import annotations

import importlib
import json
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = runpy.run_path(str(ROOT / 'tools' / 'docs' / 'equality.py'))
REPORT = json.loads((ROOT / 'docs' / 'equality' / 'report.json').read_text())


def test_page__is_what_the_script_writes():
    assert (ROOT / 'docs' / 'equality.md').read_text() == SCRIPT['page'](), 'run: python tools/docs/equality.py'


def test_report__every_figure_is_within_the_bound():
    for row in REPORT['rows']:
        assert row['identical'] and max(row['errors'].values()) <= REPORT['tolerance'] == 1e-4
        assert set(row['errors']) <= set(row['sizes']) and '224 × 224' in row['errors']


def test_report__has_every_line_of_its_sizes():
    cases = importlib.import_module('check_equality').cases()
    ran = [case for case in cases if case.name not in REPORT['not_run']]
    assert {'ti', 's'} <= {case.size for case in ran}
    assert [row['network'] for row in REPORT['rows']] == [case.name for case in ran for _ in case.targets]


def test_page__one_line_by_hand():
    row = next(row for row in REPORT['rows'] if row['class'] == 'transformers Dinov2WithRegistersModel')
    error, back = row['errors']['224 × 224'], 'yes, but for its unused mask token'
    line = f'| {row["network"]} | {row["class"]} | {error:.1e} | the class takes squares only | {back} |'
    assert line in (ROOT / 'docs' / 'equality.md').read_text()
