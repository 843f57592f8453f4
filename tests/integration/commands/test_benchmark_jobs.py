"""Trainings of a benchmark: numbers, keys, failures and interruptions, with stubs for the trainings."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from helpers.stub_trainings import calls, order, run

from mkd_plugin.reporting.benchmark import Settings, jobs, results, suites
from mkd_plugin.reporting.benchmark.jobs import Training, Trainings
from mkd_plugin.reporting.benchmark.suites import SCRATCH, read_starts
from mkd_plugin.reporting.figures import mean_curve
from mkd_plugin.reporting.store import LOCK

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


def test_entry__a_loss_that_is_not_finite_is_not_drawn(stubbed, monkeypatch):
    """MetricsHook writes null for a loss that is NaN, and the run ends there."""
    trainings = Trainings(Settings().build(), read_starts(['a.pth'], None), Settings(), Path('out'))
    training = trainings.plan(['detection'])[0]
    rows = [dict(mode='train', iter=1, loss=2.3), dict(mode='train', iter=2, loss=None)]
    monkeypatch.setattr(trainings, 'rows', lambda training: rows)
    assert results.entry(trainings, training, None, {})['curves']['loss'] == [[1, 2.3]]


def test_read_starts__a_path_with_an_equals_sign(stubbed):
    Path('lr=1e-3').mkdir()
    shutil.copy('a.pth', 'lr=1e-3/epoch_1.pth')
    assert list(read_starts(['lr=1e-3/epoch_1.pth', 'other=a.pth'], None)) == ['epoch_1', 'other']


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
