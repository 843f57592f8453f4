"""docs/scaling.md is what the script computes; one cell of it is computed by hand, and the models are recounted."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope='module')
def script():
    sys.path.insert(0, str(ROOT / 'tools' / 'docs'))
    names: dict[str, Any] = {}
    for name in ('scaling_counts', 'scaling_runs', 'scaling'):
        names |= vars(import_module(name))
    sys.path.remove(str(ROOT / 'tools' / 'docs'))
    return names


def row(page: str, *cells: str) -> list[str]:
    """The cells of the first row that begins with these."""
    line = next(line for line in page.splitlines() if line.startswith(f'| {" | ".join(cells)} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_page__is_what_the_script_writes(script):
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    assert page == script['page'](), 'run: python tools/docs/scaling.py --picture'
    assert (ROOT / 'docs' / 'scaling' / 'hours.png').is_file()


def test_page__one_run_by_hand():
    """ViT-B/16 on 64 H100: 64 images each, 91.68 GFLOP an image (docs/benchmarks.md), half of 798 TFLOP/s."""
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    step = 64 * 91.68e9 / (0.5 * 798e12)
    assert float(row(page, 'B/16', '64')[4].split(' / ')[0]) == pytest.approx(1e3 * step, abs=0.06)
    encoder = 12 * (12 * 768**2 + 13 * 768) + 768 * (16 * 16 * 3 + 1) + 768
    decoder = 8 * (12 * 512**2 + 13 * 512) + 512 * (768 + 1) + 512 + 2 * 512 + 768 * (512 + 1)
    gradients = 4 * (encoder + decoder)
    cell = f'{gradients / 1e9:.2f} GB, {1e3 * 2 * 63 / 64 * gradients / 400e9:.1f} ms, 0.0 ms'
    assert row(page, 'B/16', '64', cell)
    lost = 64 * 419 / 54 / 16384 / 86400 * (450 + 600)
    stall = 4 * (3 * (encoder + decoder) + encoder) / 64 / 1.4e9 / 900
    hours = 1600 * 1_281_167 / 4096 * step / (1 - lost - stall) / 3600
    assert float(row(page, 'B/16', '64')[6].split(' / ')[0]) == pytest.approx(hours, abs=0.06)


def test_page__published_times():
    """dBOT: 109 s an epoch on 32 A100 are 1550 GPU-hours."""
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    cells = row(page, 'dBOT ViT-B, 1600 epochs')
    work = 91.68e9 * 1_281_167 * 1600 / 312e12 / 3600
    assert cells[1] == '1,550' and cells[2] == f'{100 * work / 1550:.0f} %'
    assert cells[3] == f'{work / 0.5:,.0f} ({100 * (work / 0.5 / 1550.2 - 1):+.0f} %)'


def test_counted__is_what_the_benchmarks_count(script):
    """Of ViT-B now, and its numbers in the file are those of a new count."""
    config, arch = script['MODELS_OF']['B/16']
    assert script['count'](config, arch) == script['model_of']('B/16')
    assert script['model_of']('B/16').flops == pytest.approx(91.68e9, rel=1e-4)
    assert script['counted'](script['MAE'], 'b').flops == pytest.approx(57.14e9, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['L/16', 'H/14', 'g/14'])
def test_counted__of_the_large_models(script, name):
    assert script['count'](*script['MODELS_OF'][name]) == script['model_of'](name)


def test_constants__each_has_a_source(script):
    for name, entry in script['CONSTANTS'].items():
        assert entry.kind in ('measured', 'cited', 'choice') and len(entry.source) > 10, name
        if entry.kind == 'cited':
            assert re.search(r'[A-Z]', entry.source), name


def test_run__what_a_step_waits_for(script):
    """An eager step for its launches, one in a CUDA graph for products and the network; failures grow with the GPUs."""
    goal, today = script['goal'], script['today']
    assert goal('B/16', 8).step == goal('B/16', 8).compute and goal('B/16', 8).exposed == 0
    assert goal('B/16', 4096).step == goal('B/16', 4096).compute + goal('B/16', 4096).exposed
    assert goal('B/16', 4096).exposed == pytest.approx(2 * goal('B/16', 4096).gradients / 400e9, rel=0.3)
    assert today('B/16', 4096).step == today('B/16', 4096).launching > 10 * today('B/16', 4096).compute
    assert goal('B/16', 4096).lost == pytest.approx(512 * goal('B/16', 8).lost)
    assert goal('L/16', 64).hours > goal('B/16', 64).hours > goal('B/16', 512).hours


def test_launches__are_those_of_a_step_of_the_whole_width(script):
    """Counted on a narrow model: per block the same operations, so that they grow in proportion to the depth."""
    count = script['launches_of']
    assert count(12) < count(24) == pytest.approx(count(12) + 12 * (count(14) - count(12)) / 2, abs=2)
