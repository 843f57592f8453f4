"""The quickstart from end to end, as the shell command runs it, with small settings."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import mkd_plugin

ROOT = Path(__file__).resolve().parents[3]
TOOL = runpy.run_path(str(ROOT / 'tools/quickstart.py'))
SMALL = [
    'model.backbone.arch.width=32', 'model.backbone.arch.depth=2', 'model.objectives.feature.head.width=32',
    'train_dataloader.dataset.indices=192', 'train_cfg.max_epochs=4',
    'param_scheduler.0.end=1', 'param_scheduler.1.begin=1', 'param_scheduler.1.end=2',
]  # fmt: skip
SMALL_FINETUNE = [
    'model.backbone.arch.width=32', 'model.backbone.arch.depth=2', 'model.head.in_channels=32',
    'train_cfg.max_iters=30', 'train_cfg.val_interval=30', 'param_scheduler.0.end=5',
    'param_scheduler.1.begin=5', 'param_scheduler.1.end=30',
]  # fmt: skip

# All but the Hessian, which takes half a minute here; tests/unit/reporting/test_analysis_report.py has it.
MEASUREMENTS = [
    'maps',
    'attention',
    'fourier',
    'variance',
    'token-spectrum',
    'image-spectrum',
    'similarity',
    'landscape',
]


def run_quickstart(folder):
    """Printed text of one run."""
    command = [sys.executable, ROOT / 'tools/quickstart.py', '--work-dir', 'run', '--data-root', 'digits']
    options = ['--labels', '2', '--draws', '2', '--cfg-options', *SMALL, '--ft-options', *SMALL_FINETUNE]
    done = subprocess.run([*map(str, command), *options], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
    """Work dir and printed text of one run."""
    folder = tmp_path_factory.mktemp('quickstart')
    return folder / 'run', run_quickstart(folder)


def test_quickstart__report_has_every_row(quickstart):
    folder, printed = quickstart
    rows = json.loads((folder / 'report.json').read_text())['rows']
    assert [(row['start'], row['labels_per_class']) for row in rows] == [('teacher0', 2), ('stage1', 2), ('stage2', 2)]
    for row in rows:
        first, second = row['accuracies']
        assert row['mean'] == pytest.approx((first + second) / 2)
        assert row['std'] == pytest.approx(abs(first - second) / 2**0.5)
        assert all(0 <= accuracy * 357 / 100 <= 357 for accuracy in row['accuracies'])
        assert first * 357 / 100 == pytest.approx(round(first * 357 / 100), abs=1e-3)  # counted on all 357 scans
    assert 'stage2' in printed


def test_quickstart__rerun_skips_finished_jobs(quickstart):
    folder, _ = quickstart
    before = json.loads((folder / 'report.json').read_text())
    assert '6 jobs, 6 already done' in run_quickstart(folder.parent)
    assert json.loads((folder / 'report.json').read_text()) == before


def test_quickstart__pictures_show_something(quickstart):
    folder, _ = quickstart
    for name in ('first.png', 'attention.png', 'curves.png'):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert('RGB').getcolors(2**24)) > 50


def test_quickstart__first_picture_does_not_change_the_run(quickstart):
    """It is drawn from the first checkpoint, once, and leaves the random numbers of the run alone."""
    folder, _ = quickstart
    job = next(path for path in (folder / 'jobs').iterdir() if path.name.startswith('pretrain'))
    assert str(folder.name + '/first.png') in (next(job.glob('2*')) / f'{next(job.glob("2*")).name}.log').read_text()
    hook = TOOL['FirstPicture'](folder.parent / 'digits/val', folder / 'again.png')
    said, before = [], torch.get_rng_state()
    for work_dir in (folder / 'empty', job, job):
        hook.after_train_epoch(SimpleNamespace(work_dir=str(work_dir), logger=SimpleNamespace(info=said.append)))
    assert said == [f'The first picture is in {folder / "again.png"}.']
    assert torch.equal(torch.get_rng_state(), before)
    assert (folder / 'again.png').read_bytes() == (folder / 'first.png').read_bytes()


def test_pretrain_config__full_is_the_shipped_config():
    options = dict(seed=0, cfg_options={})
    full, short = (TOOL['pretrain_config'](SimpleNamespace(full=full, **options)) for full in (True, False))
    assert full.to_dict() == mkd_plugin.get_config('dbot/dbot_digits').to_dict()
    assert short.train_cfg.max_epochs == 70
    short.train_cfg.max_epochs = full.train_cfg.max_epochs
    assert short.to_dict() == full.to_dict()


def test_finetune_config__full_trains_as_the_shipped_config_and_from_scratch():
    run = TOOL['FineTuning']('teacher0', 2, 0)
    both = [SimpleNamespace(full=full, ft_options={}) for full in (True, False)]
    full, short = (TOOL['finetune_config'](args, run) for args in both)
    shipped = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    assert full.train_cfg == shipped.train_cfg and full.param_scheduler == shipped.param_scheduler
    assert short.train_cfg.max_iters == short.train_cfg.val_interval == short.param_scheduler[1].end == 200
    starts = ['scratch', 'teacher0', 'stage1', 'stage2']
    assert [TOOL['starts_of'](args) for args in both] == [starts, starts[1:]]


def test_docs__evidence_is_in_the_committed_report():
    """The rule of docs/quickstart.md, on its report; its table and README's have the report's numbers."""
    rows = json.loads((ROOT / 'docs/quickstart/report.json').read_text())['rows']
    found = {(row['start'], row['labels_per_class']): row for row in rows}
    pages = [(ROOT / name).read_text() for name in ('README.md', 'docs/quickstart.md')]
    for labels in (2, 10):
        random = found['teacher0', labels]
        for start in ('stage1', 'stage2'):
            row = found[start, labels]
            assert row['mean'] - random['mean'] > max(row['std'], random['std'])
        for start in ('teacher0', 'stage1', 'stage2'):
            row = found[start, labels]
            cell = re.compile(rf'\|[ *]+{row["mean"]:.1f}\*{{0,2}} ± {row["std"]:.1f} \|')
            assert all(cell.search(page) for page in pages), (start, labels)


def test_quickstart__keeps_the_stages(quickstart):
    folder, _ = quickstart
    assert {path.name for path in (folder / 'pretrain').glob('stage_*.pth')} == {f'stage_{i}.pth' for i in range(3)}


# Both commands that look at its networks, as CI runs them.


def run_tool(folder, name, *options):
    """A tool on the three stages' files, in a process of its own; the networks are called by the files' names."""
    stages = [f'run/pretrain/stage_{number}.pth' for number in range(3)]
    command = [sys.executable, ROOT / f'tools/{name}.py', *stages, '--out', 'out', *options]
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / 'out'


def numbers_of(value):
    """Every number of a JSON; what is no number there is NaN."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in numbers_of(inner)]
    return [] if isinstance(value, str) else [math.nan if value is None else float(value)]


def test_quickstart__its_stages_can_be_analyzed(quickstart):
    options = ['--images', '12', '--batch', '12', '--landscape-size', '3', '--only', *MEASUREMENTS]
    out = run_tool(quickstart[0].parent, 'analyze', '--data', 'digits/val', *options)
    report = json.loads((out / 'report.json').read_text())
    assert report['failed'] == report['left_out'] == {}
    assert {name: list(found) for name, found in report['results'].items()} == {
        f'stage_{number}': MEASUREMENTS for number in range(3)
    }
    assert all(math.isfinite(number) for number in numbers_of([report['results'], report['pairs']]))
    distances = [found['attention']['block:1']['distance_H'] for found in report['results'].values()]
    assert len({tuple(heads) for heads in distances}) == 3  # three networks, not one three times

    spec = importlib.util.spec_from_file_location('docs_browser', ROOT / 'tools/docs/browser.py')
    browser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)
    if browser.available():
        found, console = browser.look(out / 'index.html', width=400)
        assert console == [] and found['content'] <= 400 and found['images'] > 0 and len(found['figures']) > 30


def test_quickstart__its_stages_can_be_evaluated(quickstart):
    options = ['--resize', '24', '--ks', '5', '--shots', '2', '--draws', '2', '--epochs', '12', '--few-epochs', '40']
    out = run_tool(quickstart[0].parent, 'evaluate', '--data', 'digits', '--pools', 'mean', *options)
    found = json.loads((out / 'evaluation.json').read_text())
    assert found['failures'] == []
    assert [(row['checkpoint'], row['protocol']) for row in found['rows']] == [
        (f'stage_{number}', protocol) for number in range(3) for protocol in ('knn', 'linear', 'fewshot')
    ]
    assert all(20 < row['top1'] <= 100 for row in found['rows'])  # guessing gives 10
    assert 'knn' in (out / 'evaluation.md').read_text()
