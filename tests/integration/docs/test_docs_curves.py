"""docs/analyze.md: its tables are those of the JSON beside it, and its pictures are there. The script: tools/docs/curves.py."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = runpy.run_path(str(ROOT / 'tools/docs/curves.py'))
FOLDER = ROOT / 'docs/curves'


def test_page__tables_are_those_of_the_json():
    page = (ROOT / 'docs/analyze.md').read_text()
    for mark, table in SCRIPT['tables'](FOLDER).items():
        assert SCRIPT['SHARED']['fill'](page, mark, table) == page


def test_page__own_losses_and_finished_trainings():
    training = json.loads((FOLDER / 'training.json').read_text())
    assert {of['hessian']['head'] for of in training['results'].values()} == {'own'} and training['failed'] == {}
    for name in ('rates', 'frozen'):
        sweep = json.loads((FOLDER / f'{name}.json').read_text())
        assert sweep['failed'] == {} and len({len(of) for of in sweep['scores'].values()}) == 1


def test_page__pictures_are_there_and_small():
    pictures = re.findall(r'!\[.+?\]\(curves/(\w+\.png)\)', (ROOT / 'docs/analyze.md').read_text())
    assert {FOLDER / name for name in pictures} == set(FOLDER.glob('*.png'))
    for name in pictures:
        with Image.open(FOLDER / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert('RGB').getcolors(2**24)) > 50
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 500_000
