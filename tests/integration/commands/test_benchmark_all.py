"""tools/benchmark_all.py: what it refuses or skips, the commands it runs, and small runs with real trainings."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stub_trainings import run
from PIL import Image

import mkd_plugin
from mkd_plugin.registry import MODELS
from mkd_plugin.reporting.benchmark import Settings, suites
from mkd_plugin.reporting.benchmark.jobs import Training, Trainings
from mkd_plugin.reporting.benchmark.suites import SCRATCH, read_starts
from projects.digit_scenes.writing import write_digit_scenes

ROOT = Path(__file__).resolve().parents[3]


def load_tool(name, path):
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool('benchmark_all_tool', 'tools/benchmark_all.py')
browser = load_tool('docs_browser', 'tools/docs/browser.py')


# What is missing or wrong.


def test_benchmark__missing_data_leaves_a_task_out(stubbed, with_page, monkeypatch):
    text = "train_dataloader = dict(dataset=dict(data_root='nowhere/coco/', ann_file='train.json'))\n"
    Path('detection.py').write_text(Path('detection.py').read_text() + text)
    tasks = {
        **Settings().build().tasks,
        'detection': suites.Task('detection', stubbed / 'detection.py', tree='coco/\n    x'),
    }
    monkeypatch.setitem(suites.SUITES, 'digit-scenes', lambda recipe, arch: suites.Suite(tasks))
    found, printed = run()
    assert {job['task'] for job in found['jobs']} == {'classification', 'segmentation'}
    reason = found['tasks']['detection']['skipped']
    for part in ('nowhere/coco/', 'coco/\n    x', '--cfg-options detection:data_root=DIR'):
        assert part in reason
    assert 'Skipping detection: data not found: nowhere/coco/' in printed
    assert 'detection:data_root=DIR' in Path('out/index.html').read_text()


def test_main__nothing_to_train_with(stubbed, capsys):
    assert tool.main(['a.pth', '--suite', 'full', '--out', 'out', '--tasks', 'detection', 'segmentation']) == 1
    printed = capsys.readouterr().out
    assert (
        'Skipping detection: data not found: data/coco' in printed and 'annotations/instances_train2017.json' in printed
    )
    assert 'Skipping segmentation: data not found: data/ade' in printed and 'images/validation/*.jpg' in printed
    assert json.loads(Path('out/report.json').read_text())['jobs'] == []


@pytest.mark.parametrize('recipe', ['dbot', 'maskdistill', 'hybrid_distill', 'dmae'])
@pytest.mark.parametrize('arch', ['base', 'large'])
def test_full_suite__one_recipe_of_a_method(recipe, arch):
    tasks = suites.full_suite(recipe, arch).tasks
    wanted = {'classification', 'detection', 'segmentation'}
    assert set(tasks) == (wanted - {'classification'} if (recipe, arch) == ('dmae', 'large') else wanted)
    assert all(f'vit-{arch}-p16' in task.config.name and 'clip' not in task.config.name for task in tasks.values())
    assert all(task.tree.startswith('data/') for task in tasks.values())


def test_full_suite__no_such_recipe():
    with pytest.raises(ValueError, match="--recipe fd --arch base: no such fine-tuning configs.*'dbot'"):
        suites.full_suite('fd', 'base')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['none.pth'], 'none.pth: no such checkpoint'),
        (['a.pth', 'a=b.pth'], "'a' is already used"),
        (['scratch=a.pth'], "'scratch' is already used"),
        (['a.pth', '--against', 'b'], "--against b: use 'scratch', or one of ['a']"),
        (['a.pth', '--cfg-options', 'rate'], "'rate': give options as KEY=VALUE"),
        (['a.pth', '--cfg-options', 'detection:rate'], "'rate': give options as KEY=VALUE"),
        (['a.pth', '--cfg-options', 'pose:rate=1'], "Unknown task 'pose'"),
        (['a.pth', '--config', 'detection=none.py'], 'no such file'),
        (['with space.pth'], 'cannot be passed through --cfg-options'),
    ],
)
def test_main__refuses(stubbed, words, message, capsys):
    Path('with space.pth').touch()
    assert tool.main(words) == 2
    assert message in capsys.readouterr().err
    assert not Path('out').exists() and not Path('work_dirs').exists()


def test_main__refuses_a_number_when_it_reads_the_arguments(stubbed, capsys):
    with pytest.raises(SystemExit, match='2'):
        tool.main(['a.pth', '--seeds', '0'])
    assert "argument --seeds: '0' is not allowed: give a whole number of at least 1." in capsys.readouterr().err
    with pytest.raises(ValueError, match='--seeds 0: it must be at least 1'):
        Settings(seeds=0)


# Commands.


def test_command__is_one_of_the_trainers(tmp_path):
    (tmp_path / 'a.pth').write_text('a')
    tasks = {'detection': suites.Task('detection', tmp_path / 'with.py', tmp_path / 'without.py')}
    (tmp_path / 'with.py').write_text("model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='')))")
    (tmp_path / 'without.py').write_text('model = dict(backbone=dict())')
    starts = read_starts([str(tmp_path / 'a.pth')], SCRATCH)
    settings = Settings(
        options=['log_level=INFO', 'detection:randomness.deterministic=True', 'segmentation:env_cfg=None']
    )
    trainings = Trainings(suites.Suite(tasks), starts, settings, tmp_path / 'out')
    job = Training('detection', 'a', 4)
    assert trainings.command(job) == [
        sys.executable, str(ROOT / 'tools/train.py'), str(tmp_path / 'with.py'), '--work-dir', str(trainings.work_dir(job)),
        '--resume', '--cfg-options', f'model.backbone.init_cfg.checkpoint={tmp_path / "a.pth"}', 'randomness.seed=4',
        'log_level=INFO', 'randomness.deterministic=True',
    ]  # fmt: skip
    scratch = trainings.command(Training('detection', SCRATCH, 0))
    assert str(tmp_path / 'without.py') in scratch and 'model.backbone.init_cfg=None' in scratch

    several = Trainings(suites.Suite(tasks), starts, Settings(processes=8), tmp_path / 'out').command(job)
    assert several[:4] == ['bash', str(ROOT / 'tools/dist_train.sh'), str(tmp_path / 'with.py'), '8']
    plain = {'detection': suites.Task('detection', tmp_path / 'without.py')}
    added = Trainings(suites.Suite(plain), starts, Settings(), tmp_path / 'out').options(job)
    assert 'model.backbone.init_cfg.type=Pretrained' in added and 'model.backbone.init_cfg.prefix=backbone.' in added


# Really.


def small_pretraining(path):
    """A checkpoint as pre-training on the scenes leaves it, with random weights."""
    torch.manual_seed(0)
    model = MODELS.build(mkd_plugin.get_config('dbot/dbot_digit-scenes').model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


def really(folder, *words):
    """benchmark_all.sh on a few scenes: two steps, and a validation, of every training."""
    small_pretraining(folder / 'stage_2.pth')
    write_digit_scenes(folder / 'data/digit_scenes', train=6, val=2)
    command = ['bash', str(ROOT / 'tools/benchmark_all.sh'), 'stage_2.pth', '--out', 'out', '--pictures', '2', *words]
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.logger.interval=1']
    options += ['train_dataloader.dataset.indices=6', 'train_dataloader.batch_size=2']
    done = subprocess.run(
        [*command, '--cfg-options', *options], cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return json.loads((folder / 'out/report.json').read_text())


def check_page(folder, tasks, starts):
    """What the page must have, whoever looks at it."""
    text = (folder / 'out/index.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)  # nothing beside it is needed
    pictures = re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)"', text)
    assert len(pictures) == len(tasks) * 2 * (2 + starts) and len(set(pictures)) == 2 * (2 + starts)
    files = sorted(folder.glob('out/jobs/*/pictures/*.webp'))
    truths = sorted(folder.glob('out/jobs/detection*/pictures/*-truth.webp'))
    assert files and truths
    for number, file in enumerate(files):
        with Image.open(file) as picture:
            assert max(picture.size) >= 288 and len(picture.getcolors(2**24)) > 50, number
    for truth in truths:
        source = np.asarray(Image.open(truth).convert('RGB')).astype(int)
        drawn = np.asarray(Image.open(truth.with_name(truth.name.replace('truth', 'predicted'))).convert('RGB'))
        assert np.abs(source - drawn).mean() > 1  # boxes and masks on one of them
    for width in (360, 1200) if browser.available() else ():
        found, console = browser.look(folder / 'out/index.html', width=width)
        assert console == []
        assert found['content'] <= found['window'] == width
        assert len(found['pictures']) == len(pictures)
        assert all(100 < size[0] <= width and size[1] > 60 for size in found['figures'] + found['pictures'])
        assert found['enlarged'] == 1


def test_benchmark_all__a_detector_for_real(tmp_path):
    found = really(tmp_path, '--tasks', 'detection', '--seeds', '1')
    (job,) = found['jobs']
    assert job['iterations'] == 2
    assert all(0 <= job['scores'][name] <= 100 for name in ('AP-box', 'AP-mask'))  # −100 without ground truth
    assert [point[0] for point in job['curves']['loss']] == [1, 2]
    check_page(tmp_path, ['detection'], starts=1)


@pytest.mark.slow
def test_benchmark_all__all_tasks_for_real(tmp_path):
    found = really(tmp_path, '--against', 'scratch', '--seeds', '1')
    assert len(found['jobs']) == 6 and not any(job['failed'] for job in found['jobs'])
    labels = {label for about in found['tasks'].values() for label in about['scores']}
    assert labels == {'top-1', 'AP-box', 'AP-mask', 'mIoU', 'mAcc'}
    rows = [json.loads(line) for line in next(tmp_path.glob('out/jobs/segm*/metrics.jsonl')).read_text().splitlines()]
    assert any(rows[-1]['mIoU'] == job['scores'].get('mIoU') for job in found['jobs'])
    check_page(tmp_path, ['detection', 'segmentation'], starts=2)
