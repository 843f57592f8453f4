"""projects/multi_teacher: tiny runs from end to end, the rule, and the page's table."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mkd_plugin.models.vit import VisionTransformer
from projects.multi_teacher import run as command
from projects.small_data import cells

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / 'docs/multi_teacher.md').read_text()


@pytest.fixture
def two_updates(monkeypatch):
    for name, value in (('STEPS', 2), ('SEEDS', 2)):
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(cells, 'LONG', 2)
    monkeypatch.setattr(cells, 'SHORT', 2)


def test_student__learns_from_the_teachers_of_its_setting(two_updates, tmp_path, written_digits, monkeypatch):
    """A real run: heads of the objectives that it has, and features. test_small_data has the images and scores."""
    some = torch.randn(20, 3, 24, 24), torch.arange(20)
    monkeypatch.setattr(cells, 'read_split', lambda data, split, root: some)
    monkeypatch.setattr(cells, 'scores_of', lambda train, test: [train[0].shape, test[0].shape])
    files = {}
    for seed, name in enumerate(command.TEACHERS):
        torch.manual_seed(seed)
        network = VisionTransformer(arch=cells.STUDENTS['small'], img_size=24, patch_size=4)
        files[name] = str(tmp_path / f'{name}.pth')
        torch.save({f'backbone.{key}': value for key, value in network.state_dict().items()}, files[name])
    found = command.run_student('dbot', 0, str(written_digits), files, SimpleNamespace(work_dir=tmp_path / 'run'))
    assert found == [(20, 96), (20, 96)]
    state = torch.load(tmp_path / 'run/iter_2.pth', weights_only=False)['state_dict']
    assert {name.split('.')[1] for name in state if name.startswith('objectives.')} == {'dbot', 'dbot_cls'}


@pytest.mark.slow
def test_run__two_teachers_and_each_alone(two_updates, tmp_path, monkeypatch):
    """Real runs of two updates; a second call runs nothing and writes the same page."""
    teachers = {name: cells.Cell('digits', 100, name, 2) for name in command.TEACHERS}
    monkeypatch.setattr(command, 'TEACHERS', teachers)
    (tmp_path / 'page.md').write_text(TEXT)
    arguments = ['run.py', '--work-dir', str(tmp_path / 'runs'), '--digits', str(tmp_path / 'digits')]
    monkeypatch.setattr('sys.argv', [*arguments, '--page', str(tmp_path / 'page.md')])
    assert command.main() == 0
    report = json.loads((tmp_path / 'page/report.json').read_text())
    assert {name: len(seeds) for name, seeds in report['scores'].items()} == {
        'teacher mae': 1, 'teacher dbot': 1, 'both': 2, 'mae': 2, 'dbot': 2,
    }  # fmt: skip
    assert all(25 < value <= 100 for seeds in report['scores'].values() for one in seeds for value in one['probe_few'])
    page = (tmp_path / 'page.md').read_text()
    assert '| both − MAE alone |' in page and page.startswith(TEXT.split('<!-- results -->')[0])
    monkeypatch.setattr(command, 'run_jobs', None)  # not called
    monkeypatch.setattr('sys.argv', ['run.py', '--report-only', '--page', str(tmp_path / 'page.md')])
    assert command.main() == 0 and (tmp_path / 'page.md').read_text() == page


def test_difference__has_the_three_parts_of_its_error():
    """Differences by draw 5/3 and 4, by seed 2, 2.5 and 4; 80 and 77 per cent of 357 images."""
    mean, error, verdict = command.difference([[79, 80], [80, 81], [80, 80]], [[78, 77], [79, 77], [77, 75]])
    by_draw, by_seed = [5 / 3, 4], [2, 2.5, 4]
    parts = [((by_draw[1] - by_draw[0]) ** 2 / 2) / 2, sum((x - sum(by_seed) / 3) ** 2 for x in by_seed) / 2 / 3]
    one, other = 480 / 600, 463 / 600
    images = 1e4 * (one * (1 - one) + other * (1 - other)) / 357
    assert mean == pytest.approx(17 / 6) and error == pytest.approx((sum(parts) + images) ** 0.5)
    assert verdict == 'undecided'
    assert command.difference([[90.0]] * 3, [[70.0]] * 3)[2] == 'better'
    assert command.difference([[70.0]] * 3, [[90.0]] * 3)[2] == 'worse'


def test_page__its_table_is_that_of_the_report(tmp_path):
    if not (ROOT / 'docs/multi_teacher/report.json').is_file():
        assert 'Not measured yet.' in TEXT
        return
    shutil.copy2(ROOT / 'docs/multi_teacher.md', tmp_path / 'page.md')
    command.write_page(json.loads((ROOT / 'docs/multi_teacher/report.json').read_text()), tmp_path / 'page.md')
    assert (tmp_path / 'page.md').read_text() == TEXT
    assert re.search(r'two teachers are \*\*', TEXT)
