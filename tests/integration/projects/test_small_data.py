"""projects/small_data: the cells, their comparison, the page, and tiny cells from end to end on both data sets."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mkd_plugin.datasets import write_digits
from mkd_plugin.reporting.experiment import run_jobs
from mkd_plugin.reporting.store import Store
from projects.small_data import cells, page
from projects.small_data import run as command
from projects.small_data.cells import DRAWS, LONG, SCORES, Cell

ROOT = Path(__file__).resolve().parents[3]
MAE = Cell('digits', 1, 'mae', 4)


def test_cells__each_once_and_teachers_before_students():
    found = cells.cells()
    assert len(set(found)) == len(found)
    for cell in found:
        teacher = cells.teacher_of(cell)
        assert teacher is None or found.index(teacher) < found.index(cell)


def test_chosen_images__nested_shares():
    one, ten, everything = (set(cells.chosen_images(Cell('fashion', share, 'mae', LONG))) for share in (1, 10, 100))
    assert (len(one), len(ten), len(everything)) == (600, 6000, 60_000)
    assert one < ten < everything


def write_fashion(folder, train=400, test=100):
    """Write Fashion-MNIST's four files, with random pixels and classes in turn."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, count in (('train', train), ('t10k', test)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack('>4i', 0x803, count, 28, 28)
        (folder / f'{name}-images-idx3-ubyte').write_bytes(header + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 0x801, count) + labels.tobytes())
    return folder


def test_run__every_method_on_both_data_sets(tmp_path, monkeypatch):
    """Real runs of four updates; the second call runs nothing."""
    for name, value in (('IMAGES', 400), ('LABELS', 20)):
        monkeypatch.setitem(getattr(cells, name), 'fashion', value)
    wanted = [
        Cell('digits', 0, 'random', 0),
        *(replace(MAE, method=method) for method in ('mae', 'dmae', 'dbot')),
        replace(MAE, data='fashion', percent=10),
    ]
    roots = dict(digits=str(write_digits(tmp_path / 'digits')), fashion=str(write_fashion(tmp_path / 'fashion')))
    store = Store(tmp_path / 'runs')
    jobs = cells.jobs_of(wanted, roots, store)
    outcome = run_jobs(list(jobs.values()), store, console=Console(file=io.StringIO()))
    assert not outcome.failures
    for cell, job in jobs.items():
        scores = outcome.records[job.key].value
        assert {name: len(values) for name, values in scores.items()} == dict(
            probe_few=DRAWS, knn_few=DRAWS, probe_all=1, knn_all=1
        )
        if cell.data == 'digits':  # random features tell digits apart, random pixels nothing
            assert all(25 < value <= 100 for values in scores.values() for value in values)
    weights = [
        torch.load(store.work_dir(jobs[replace(MAE, method=name)].key) / 'iter_4.pth', weights_only=False)['state_dict']
        for name in ('mae', 'dmae', 'dbot')
    ]
    patch = [state['backbone.patch_embed.projection.weight'] for state in weights]
    assert not torch.equal(patch[0], patch[1]) and not torch.equal(patch[0], patch[2])
    said = io.StringIO()
    run_jobs(list(jobs.values()), store, console=Console(file=said))
    assert '5 jobs, 5 already done' in said.getvalue()


# Comparing cells.


def found_of(*seeds):
    """Scores of MAE and of the random network, by seed: pairs of the draws' top-1."""
    random = replace(MAE, percent=0, method='random', steps=0)
    return {
        replace(cell, seed=seed): dict.fromkeys(SCORES, list(values))
        for seed, pair in enumerate(seeds)
        for cell, values in zip((MAE, random), pair, strict=True)
    }, random


def test_difference__one_seed():
    """d = 20, 24: mean 22, of the draws 8 / 2; of the test images 0.82 · 0.18 / 357 and 0.6 · 0.4 / 357."""
    found, random = found_of(([81, 83], [61, 59]))
    one = page.difference(found, MAE, random)
    assert one.mean == pytest.approx(22)
    assert one.error == pytest.approx((8 / 2 + 1e4 * (0.82 * 0.18 + 0.6 * 0.4) / 357) ** 0.5)
    assert str(one) == f'+22.0 ± {one.error:.1f} **better**'
    assert str(page.difference(found, random, MAE)).endswith('worse')


def test_difference__two_seeds_add_the_spread_between_them():
    """d = 20, 20 and 30, 30: no spread over the draws, and 50 / 2 over the seeds."""
    found, random = found_of(([80, 80], [60, 60]), ([80, 80], [50, 50]))
    two = page.difference(found, MAE, random)
    assert two.mean == pytest.approx(25)
    assert two.error == pytest.approx((50 / 2 + 1e4 * (0.8 * 0.2 + 0.55 * 0.45) / 357) ** 0.5)


def test_difference__missing_cell():
    found, random = found_of(([80, 80], [60, 60]))
    assert page.difference(found, replace(MAE, steps=8), random) is None


# The page.


def test_page__tables_are_those_of_the_report(tmp_path):
    copy = tmp_path / 'small_data.md'
    shutil.copy2(ROOT / 'docs/small_data.md', copy)
    shutil.copytree(ROOT / 'docs/small_data', tmp_path / 'small_data')
    report = json.loads((ROOT / 'docs/small_data/report.json').read_text())
    page.write_page(report, copy)
    assert copy.read_text() == (ROOT / 'docs/small_data.md').read_text()
    assert len(report['cells']) + len(report['left_out']) == len(cells.cells())


def test_command__report_only(tmp_path, monkeypatch):
    shutil.copytree(ROOT / 'docs/small_data', tmp_path / 'page')
    text = (ROOT / 'docs/small_data.md').read_text()
    (tmp_path / 'page.md').write_text(re.sub(r'(?m)^\|.*\n', '', text))  # without its tables
    monkeypatch.setattr('sys.argv', ['run.py', '--report-only', '--page', str(tmp_path / 'page.md')])
    assert command.main() == 0
    assert (
        '| 1,440 | mae |' in (tmp_path / 'page.md').read_text()
        or '| 60,000 | mae |' in (tmp_path / 'page.md').read_text()
    )
