"""tools/benchmark_all.py: skipped, resumed and failed trainings, the numbers, the page, and one small run for real."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import mkd_plugin
from mkd_plugin.registry import MODELS
from mkd_plugin.reporting.benchmark import Settings, benchmark, jobs, results, suites
from mkd_plugin.reporting.benchmark import run as benchmark_run
from mkd_plugin.reporting.benchmark.jobs import Training, Trainings
from mkd_plugin.reporting.benchmark.suites import SCRATCH, read_starts
from mkd_plugin.reporting.figures import mean_curve
from mkd_plugin.reporting.page import write_page
from mkd_plugin.reporting.store import LOCK
from projects.digit_scenes.writing import write_digit_scenes

ROOT = Path(__file__).resolve().parents[3]


def load_tool(name, path):
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool('benchmark_all_tool', 'tools/benchmark_all.py')
browser = load_tool('docs_browser', 'tools/docs/browser.py')

# Stands for tools/train.py: notes that it was called, then writes what a training would. What it does is in `orders.json`.
TRAINER = """
import json, os, pathlib, signal, sys, time
folder, job, task, start, seed = pathlib.Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
with open('calls.txt', 'a') as calls:
    calls.write(job + '\\n')
order = json.loads(pathlib.Path('orders.json').read_text()).get(job)
if order == 'fail':
    print('first line\\n' + 'x\\n' * 50 + 'ValueError: the 7th image is broken')
    sys.exit(3)
if order == 'interrupt' and not (folder / 'saved').exists():
    def save(number, frame):
        (folder / 'saved').touch()
        sys.exit(85)
    signal.signal(signal.SIGTERM, save)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
score = {'classification': 50, 'detection': 0.2, 'segmentation': 30}[task] * (1 + 0.1 * seed ** 2)
score *= {'scratch': 1.0, 'a': 1.5, 'b': 0.9}[start]
names = {
    'classification': ['accuracy/top1'], 'detection': ['coco/bbox_mAP', 'coco/segm_mAP'], 'segmentation': ['mIoU', 'mAcc'],
}[task]
rows = [dict(mode='train', iter=n, loss=9.0 / n) for n in (1, 2)]
rows += [dict(mode='val', iter=2, **dict.fromkeys(names, score / 2))]
rows += [dict(mode='train', iter=4, loss=1.0), dict(mode='val', iter=4, other=1, **dict.fromkeys(names, score))]
(folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\\n' for row in rows))
"""


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """An empty folder, two checkpoints, three configs, and a trainer that does as it is told."""
    monkeypatch.chdir(tmp_path)
    Path('trainer.py').write_text(TRAINER)
    Path('orders.json').write_text('{}')
    for name in ('a', 'b'):
        Path(f'{name}.pth').write_text(f'weights {name}')
    for name in suites.TASKS:
        Path(f'{name}.py').write_text(
            f"model = dict(type='{name}', backbone=dict())\ntrain_cfg = dict(max_iters=4)\nrate = 1\n"
        )
    tasks = {name: suites.Task(name, tmp_path / f'{name}.py') for name in suites.TASKS}
    monkeypatch.setitem(suites.SUITES, 'digit-scenes', lambda recipe, arch: suites.Suite(tasks, seeds=2))
    monkeypatch.setattr(benchmark_run, 'write_page', lambda path, document: None)
    monkeypatch.setattr(
        Trainings, 'command',
        lambda self, job: [
            sys.executable, '-I', '-S', 'trainer.py', str(self.work_dir(job)), str(job), job.task, job.start, str(job.seed),
        ],
    )  # fmt: skip
    return tmp_path


@pytest.fixture
def with_page(stubbed, monkeypatch):
    """The same with the page, which takes a second to draw."""
    monkeypatch.setattr(benchmark_run, 'write_page', write_page)


def run(checkpoints=('a.pth',), **options):
    """A benchmark; the report and what was printed."""
    printed = io.StringIO()
    settings = Settings(**{**dict(against=SCRATCH, pictures=0), **options})
    found = benchmark(
        checkpoints, settings, out=Path('out'), command='bash tools/benchmark_all.sh', console=Console(file=printed, width=200)
    )  # fmt: skip
    return found, printed.getvalue()


def calls():
    """The trainings that were begun since the last time."""
    file = Path('calls.txt')
    begun = file.read_text().splitlines() if file.is_file() else []
    file.unlink(missing_ok=True)
    return begun


def order(**orders):
    """Tell trainings what to do; all others succeed."""
    Path('orders.json').write_text(json.dumps(orders))


# The numbers.


def test_benchmark__means_spreads_and_paired_differences(with_page):
    found, printed = run(['a.pth', 'b=b.pth'], seeds=3)
    assert len(calls()) == 3 * 3 * 3
    seeds = np.array([1.0, 1.1, 1.4])
    for task, label, base in (
        ('classification', 'top-1', 50), ('detection', 'AP-mask', 20), ('segmentation', 'mIoU', 30),
    ):  # fmt: skip
        got = found['tasks'][task]['scores'][label]
        for start, factor in (('a', 1.5), ('b', 0.9), ('scratch', 1.0)):
            wanted = base * factor * seeds
            assert list(got[start]['seeds'].values()) == pytest.approx(wanted)
            assert got[start]['mean'] == pytest.approx(wanted.mean())
            assert got[start]['std'] == pytest.approx(wanted.std(ddof=1))
            if start == 'scratch':
                assert got[start]['difference'] is None
                continue
            paired = base * (factor - 1) * seeds
            assert got[start]['difference']['mean'] == pytest.approx(paired.mean())
            assert got[start]['difference']['std'] == pytest.approx(paired.std(ddof=1))
            assert got[start]['difference']['better'] == (3 if start == 'a' else 0)
    assert json.loads(Path('out/report.json').read_text()) == found
    page = unescape(Path('out/index.html').read_text())
    for text in ('87.5 ± 15.6', '+29.2 ± 5.2 (3 of 3)', '−5.8 ± 1.0 (0 of 3)'):
        assert text in page
    assert '87.5 ± 15.6' in printed and '9.0 min left' not in printed
    (job,) = (job for job in found['jobs'] if (job['task'], job['start'], job['seed']) == ('detection', 'a', 1))
    assert job['scores'] == pytest.approx({'AP-box': 33, 'AP-mask': 33, 'other': 1})
    assert job['curves']['AP-box'] == pytest.approx(np.array([[2, 16.5], [4, 33]]))
    assert job['curves']['loss'] == [[1, 9.0], [2, 4.5], [4, 1.0]]


def test_final_scores__are_those_of_the_last_validation():
    metrics = suites.TASKS['detection'].metrics
    rows = [{'mode': 'val', 'iter': 1, 'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.4}, {'mode': 'val', 'iter': 2}]
    assert jobs.final_scores(rows[:1], metrics) == {'AP-box': 50, 'AP-mask': 40}
    assert jobs.final_scores(rows, metrics) == {'AP-box': 0, 'AP-mask': 0}  # nothing was detected
    with pytest.raises(ValueError, match="gave no mIoU, only \\['aAcc'\\]"):
        jobs.final_scores([{'mode': 'val', 'iter': 1, 'aAcc': 3.0}], suites.TASKS['segmentation'].metrics)
    for unfinished in ([], [{'mode': 'val', 'iter': 1}, {'mode': 'train', 'iter': 2}]):
        with pytest.raises(ValueError, match='did not end with a validation'):
            jobs.final_scores(unfinished, metrics)


def test_differences__only_of_seeds_that_both_have():
    assert results.differences({0: 5.0, 2: 9.0}, {0: 4.0, 1: 7.0}) == dict(
        mean=1.0, std=None, seeds={'0': 1.0}, better=1
    )
    assert results.differences({0: 5.0}, {1: 7.0}) is None


def test_curves__mean_and_thinning():
    assert mean_curve([[[1, 2.0], [3, 4.0]], [[1, 4.0], [2, 9.0], [3, 5.0]]]) == [(1, 3.0), (3, 4.5)]
    points = [[step, float(step)] for step in range(1001)]
    thin = results.thinned(points)
    assert 150 < len(thin) <= 202 and thin[0] == points[0] and thin[-1] == points[-1]
    assert results.thinned([]) == [] and results.thinned(points[:3]) == points[:3]


# What is done, and what is not done again.


def test_benchmark__again_does_nothing(stubbed):
    first, _ = run()
    assert len(calls()) == 12
    shutil.copy('a.pth', 'copy.pth')
    second, printed = run(['a=copy.pth'])  # the same bytes at another place
    assert calls() == [] and '12 jobs, 12 already done' in printed
    assert [job['scores'] for job in first['jobs']] == [job['scores'] for job in second['jobs']]


def keys(**options):
    """Of all trainings."""
    settings = Settings(**{**dict(against=SCRATCH), **options})
    trainings = Trainings(settings.build(), read_starts(['a.pth'], settings.against), settings, Path('out'))
    return {trainings.key(job) for job in trainings.plan(list(trainings.suite.tasks))}


@pytest.mark.parametrize(
    ('change', 'again'),
    [
        (dict(seeds=3), 6),
        (dict(options=['rate=2']), 12),
        (dict(options=['detection:rate=2']), 4),
        (dict(processes=2), 12),
        (dict(against=None), 0),
        (dict(jobs=2, pictures=0), 0),
        (dict(tasks=['detection']), 0),
    ],
)
def test_key__what_a_change_makes_it_do_again(stubbed, change, again):
    assert len(keys()) == 12
    assert len(keys(**change) - keys()) == again


def test_key__another_checkpoint_config_or_version_is_trained_anew(stubbed, monkeypatch):
    before = keys()
    Path('a.pth').write_text('other weights')
    assert len(keys() - before) == 6  # scratch does not depend on it
    before = keys()
    Path('segmentation.py').write_text(Path('segmentation.py').read_text().replace('rate = 1', 'rate = 2'))
    assert {name.split('-')[0] for name in keys() - before} == {'segmentation'}
    monkeypatch.setattr(jobs, '__version__', '99')
    assert not keys() & before


def test_key__depends_on_the_data(stubbed):
    suite = replace(Settings().build(), stamp=Path('scenes.json'))
    Path('scenes.json').write_text('{"train": 10}')
    job = Training('detection', SCRATCH, 0)

    def key():
        return Trainings(suite, read_starts([], SCRATCH), Settings(), Path('out')).key(job)

    first = key()
    assert key() == first
    Path('scenes.json').write_text('{"train": 11}')
    assert key() != first


def test_benchmark__failed_training_does_not_lose_the_others(with_page):
    order(**{'detection from a, seed 0': 'fail'})
    found, printed = run()
    assert len(calls()) == 12
    (failed,) = (job for job in found['jobs'] if job['failed'])
    assert (failed['task'], failed['start'], failed['seed']) == ('detection', 'a', 0)
    assert failed['failed']['reason'] == 'exit code 3'
    assert failed['failed']['lines'][-1] == 'ValueError: the 7th image is broken'
    assert 'detection from a, seed 0: FAILED: exit code 3' in printed and '7th image' in printed
    assert found['tasks']['detection']['scores']['AP-box']['a']['seeds'].keys() == {'1'}
    assert '7th image' in unescape(Path('out/index.html').read_text())

    order()
    again, _ = run()
    assert calls() == ['detection from a, seed 0']
    assert not any(job['failed'] for job in again['jobs'])


def test_benchmark__resumes_after_an_interruption(stubbed):
    order(**{'detection from scratch, seed 0': 'interrupt'})
    with pytest.raises(KeyboardInterrupt):
        run(jobs=2)
    begun = calls()
    assert 'detection from scratch, seed 0' in begun and len(begun) < 12
    (saved,) = Path('out').glob('jobs/*/saved')
    assert not (saved.parent / 'result.json').exists()
    done = len(list(Path('out').glob('jobs/*/result.json')))
    found, _ = run(jobs=2)
    again = calls()
    assert 'detection from scratch, seed 0' in again and len(again) == 12 - done
    assert not any(job['failed'] for job in found['jobs'])


def test_benchmark__a_training_that_outlived_its_benchmark(stubbed):
    trainings = Trainings(Settings().build(), read_starts(['a.pth'], SCRATCH), Settings(), Path('out'))
    folder = trainings.work_dir(Training('detection', 'a', 1))
    folder.mkdir(parents=True)
    with (folder / LOCK).open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found, _ = run()
    (failed,) = (job for job in found['jobs'] if job['failed'])
    assert 'another process is running this job' in failed['failed']['reason']
    assert len(calls()) == 11
    run()
    assert calls() == ['detection from a, seed 1']


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
        (['a.pth', '--seeds', '0'], '--seeds 0: it must be at least 1'),
        (['a.pth', '--cfg-options', 'rate'], 'give KEY=VALUE, or TASK:KEY=VALUE'),
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


# Commands.


def test_command__is_one_of_the_trainers(tmp_path):
    (tmp_path / 'a.pth').write_text('a')
    tasks = {'detection': suites.Task('detection', tmp_path / 'with.py', tmp_path / 'without.py')}
    (tmp_path / 'with.py').write_text("model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='')))")
    (tmp_path / 'without.py').write_text('model = dict(backbone=dict())')
    starts = read_starts([str(tmp_path / 'a.pth')], SCRATCH)
    settings = Settings(options=['x=1', 'detection:y=2', 'segmentation:z=3'])
    trainings = Trainings(suites.Suite(tasks), starts, settings, tmp_path / 'out')
    job = Training('detection', 'a', 4)
    assert trainings.command(job) == [
        sys.executable, str(ROOT / 'tools/train.py'), str(tmp_path / 'with.py'), '--work-dir', str(trainings.work_dir(job)),
        '--resume', '--cfg-options', f'model.backbone.init_cfg.checkpoint={tmp_path / "a.pth"}', 'randomness.seed=4',
        'x=1', 'y=2',
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
    for number, file in enumerate(sorted(folder.glob('out/jobs/*/pictures/*.webp'))):
        with Image.open(file) as picture:
            assert max(picture.size) >= 288 and len(picture.getcolors(2**24)) > 50, number
    for truth in folder.glob('out/jobs/detection*/pictures/*-truth.webp'):
        source = np.asarray(Image.open(truth).convert('RGB')).astype(int)
        drawn = np.asarray(Image.open(truth.with_name(truth.name.replace('truth', 'predicted'))).convert('RGB'))
        assert np.abs(source - drawn).mean() > 1  # boxes and masks on one of them
    if not browser.available():
        pytest.skip('there is no chromium to look at the page')
    for width in (360, 1200):
        found, console = browser.look(folder / 'out/index.html', width=width)
        assert console == []
        assert found['content'] <= found['window'] == width
        assert len(found['pictures']) == len(pictures)
        assert all(100 < size[0] <= width and size[1] > 60 for size in found['figures'] + found['pictures'])
        assert found['enlarged'] == 1


def test_benchmark_all__a_detector_for_real(tmp_path):
    found = really(tmp_path, '--tasks', 'detection', '--seeds', '1')
    (job,) = found['jobs']
    assert job['iterations'] == 2 and job['scores']['AP-box'] >= 0
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
