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
CODEBOOK = runpy.run_path(str(ROOT / 'tools/docs/codebook.py'))
FOLDER = ROOT / 'docs/analysis'


def test_page__tables_are_those_of_the_json():
    page = (ROOT / 'docs/analysis.md').read_text()
    report, evaluation = (json.loads((FOLDER / f'{name}.json').read_text()) for name in ('report', 'evaluation'))
    assert SCRIPT['fill'](page, 'numbers', SCRIPT['numbers_table'](report)) == page
    assert SCRIPT['fill'](page, 'evaluation', SCRIPT['evaluation_table'](evaluation)) == page
    assert list(report['results']) == list(evaluation['checkpoints'])
    assert report['failed'] == report['left_out'] == {} and evaluation['failures'] == []


def test_page__codebook_table_is_that_of_the_json():
    page, found = (ROOT / 'docs/analysis.md').read_text(), json.loads((FOLDER / 'codebook.json').read_text())
    assert CODEBOOK['filled'](page, found) == page


def test_codebook__numbers_are_means_over_heads_and_same_layers():
    """Layers of two heads; the similarity of unlike layers is not read."""
    layers = dict(
        near=dict(distance_H=[1.0, 2.0], nmi_H=[0.25, 0.75]), far=dict(distance_H=[3.0, 5.0], nmi_H=[0.0, 0.5])
    )
    pairs = [
        dict(
            first='MAE', second=name, rows=['near', 'far'], columns=['near', 'far'], values_RS=[[one, 9.0], [9.0, 0.5]]
        )
        for name, one in (('codebook', 0.25), ('connected', 0.75))
    ]
    other = dict(first='codebook', second='connected', rows=['near'], columns=['near'], values_RS=[[7.0]])
    results = dict.fromkeys(('MAE', 'codebook', 'connected'), dict(attention=layers))
    found = CODEBOOK['numbers'](dict(results=results, pairs=[*pairs, other], data=dict(images=64, of=357)))
    assert found['attention']['MAE'] == dict(near=dict(distance=1.5, nmi=0.5), far=dict(distance=4.0, nmi=0.25))
    assert found['similarity'] == {
        'MAE, connected': dict(near=0.75, far=0.5),
        'MAE, codebook': dict(near=0.25, far=0.5),
    }
    assert CODEBOOK['table'](found).splitlines()[2] == '| 1 | 0.75 | 0.25 | 1.5 | 1.5 | 1.5 |'


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
