"""docs/analysis.md: its tables are those of the JSON beside it, its pictures are small, and the script that makes them."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = runpy.run_path(str(ROOT / 'tools/docs/analysis.py'))
FOLDER = ROOT / 'docs/analysis'


def test_page__tables_are_those_of_the_json():
    page = (ROOT / 'docs/analysis.md').read_text()
    report, evaluation = (json.loads((FOLDER / f'{name}.json').read_text()) for name in ('report', 'evaluation'))
    assert SCRIPT['fill'](page, 'numbers', SCRIPT['numbers_table'](report)) == page
    assert SCRIPT['fill'](page, 'evaluation', SCRIPT['evaluation_table'](evaluation)) == page
    assert list(report['results']) == list(evaluation['checkpoints'])
    assert report['failed'] == report['left_out'] == {} and evaluation['failures'] == []


def test_page__pictures_are_there_and_small():
    pictures = re.findall(r'!\[.+?\]\(analysis/(\w+\.png)\)', (ROOT / 'docs/analysis.md').read_text())
    assert set(pictures) == {'report.png', *(f'{name}.png' for name in SCRIPT['FIGURES'])}
    for name in pictures:
        assert (FOLDER / name).stat().st_size < 500_000
        with Image.open(FOLDER / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert('RGB').getcolors(2**24)) > 50
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def test_rise__of_a_bowl():
    """loss = 1 + x² + 2 y²: at ±0.2 in one direction 0.04 and 0.08 more."""
    steps = [-0.4, -0.2, 0.0, 0.2, 0.4]
    losses = [[1 + x * x + 2 * y * y for y in steps] for x in steps]
    assert SCRIPT['rise'](dict(steps=steps, losses=losses)) == pytest.approx(0.06)


def test_fill__page_without_marks():
    with pytest.raises(ValueError, match='0 places <!-- numbers -->'):
        SCRIPT['fill']('# A page', 'numbers', '| a |')


def test_shortened__five_digits_everywhere():
    assert SCRIPT['shortened']({'a': [1.23456789, 3], 'b': 'text', 'c': None}) == {
        'a': [1.2346, 3],
        'b': 'text',
        'c': None,
    }
