"""mkd_plugin.reporting.experiment and store: order, resuming, failures, interruptions, time left."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from rich.console import Console

from mkd_plugin.reporting import experiment
from mkd_plugin.reporting.experiment import Job, JobFailed, run_jobs
from mkd_plugin.reporting.store import Store, key_of
from mkd_plugin.reporting.workers import threads_per_job


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / 'jobs')


def write_order(store_folder, letter, needed, context):
    """Append a letter to the order, once all letters that it needs are there."""
    order = store_folder.parent / 'order.txt'
    text = order.read_text() if order.exists() else ''
    assert set(needed) <= set(text)
    if letter == 'x':
        raise ValueError('x is broken')
    if letter == 'y':
        raise RuntimeError('y is a bug')
    with order.open('a') as file:
        file.write(letter)
    return dict(letter=letter)


def chores(store, **needs):
    """Jobs named by letters, each with the letters it needs."""
    return [
        Job(name, name, partial(write_order, store.folder, name, needed), dependencies=tuple(needed))
        for name, needed in needs.items()
    ]


def run(jobs, store, **options):
    """The outcome and what was printed."""
    printed = io.StringIO()
    outcome = run_jobs(jobs, store, console=Console(file=printed, width=80), **options)
    return outcome, printed.getvalue()


@pytest.mark.parametrize(('backend', 'workers'), [('inline', 1), ('threads', 1), ('threads', 3), ('processes', 2)])
def test_run_jobs__each_job_once_after_its_dependencies(store, backend, workers):
    jobs = chores(store, d='bc', b='a', c='a', a='', e='d')
    outcome, printed = run(
        jobs, store, backend=backend, workers=workers, describe=lambda record: record.value['letter']
    )
    order = (store.folder.parent / 'order.txt').read_text()
    assert sorted(order) == list('abcde') and order[0] == 'a' and order[-2:] == 'de'
    assert {key: record.value for key, record in outcome.records.items()} == {x: {'letter': x} for x in 'abcde'}
    assert outcome.failures == {}
    assert '5 jobs, 0 already done.' in printed and '[5/5] e: e' in printed
    again, printed = run(jobs, store, backend=backend, workers=workers)
    assert (store.folder.parent / 'order.txt').read_text() == order
    assert again.records == outcome.records and '5 jobs, 5 already done.' in printed


def test_run_jobs__a_failure_stops_its_dependents_only(store):
    outcome, printed = run(chores(store, a='', x='a', b='x', c='b', d='a'), store)
    assert set(outcome.records) == {'a', 'd'}
    assert {key: str(failure) for key, failure in outcome.failures.items()} == {
        'x': 'x is broken',
        'b': 'depends on x, which failed',
        'c': 'depends on b, which failed',
    }
    assert 'x: FAILED: x is broken' in printed
    assert store.read('x') is None


@pytest.mark.parametrize('backend', ['inline', 'threads', 'processes'])
def test_run_jobs__raises_what_is_no_value_error(store, backend):
    with pytest.raises(RuntimeError, match='y is a bug'):
        run(chores(store, a='', y='a', b='y'), store, backend=backend)
    assert store.read('a') is not None and store.read('b') is None


def test_run_jobs__interrupted_inline_and_resumed(store):
    def stop(context):
        (context.work_dir / 'half').touch()
        raise KeyboardInterrupt

    jobs = chores(store, a='', b='')
    with pytest.raises(KeyboardInterrupt):
        run([jobs[0], Job('b', 'b', stop)], store)
    assert store.read('b') is None and store.add_seconds('b', 0) >= 0 and (store.work_dir('b') / 'half').exists()
    outcome, printed = run(jobs, store)
    assert '2 jobs, 1 already done.' in printed and set(outcome.records) == {'a', 'b'}


PROGRAM = """
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path('saved').touch()
    sys.exit(85)
signal.signal(signal.SIGTERM, save)
print('started', flush=True)
pathlib.Path('started').touch()
time.sleep(60)
"""


def test_run_jobs__sigterm_reaches_the_programs(store, tmp_path, monkeypatch):
    """They save their state before the run ends, and their time counts."""
    monkeypatch.chdir(tmp_path)

    def kill_when_started():
        while not (tmp_path / 'started').exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    job = Job('sleep', 'sleep', lambda context: context.run_command([sys.executable, '-c', PROGRAM]))
    before = signal.getsignal(signal.SIGTERM)
    killer = threading.Thread(target=kill_when_started)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        run([job], store, backend='threads')
    killer.join()
    assert (tmp_path / 'saved').exists()
    assert signal.getsignal(signal.SIGTERM) == before
    assert (store.work_dir('sleep') / 'log.txt').read_text() == 'started\n'
    assert store.read('sleep') is None and store.add_seconds('sleep', 0) > 0


def test_run_command__failure_shows_the_end_of_the_log(store):
    def fail(context):
        code = context.run_command([sys.executable, '-c', 'print("one"); print("x\\n" * 30); raise SystemExit(3)'])
        raise context.failure(f'exit code {code}')

    outcome, printed = run([Job('program', 'program', fail)], store, backend='threads')
    failure = outcome.failures['program']
    assert failure.reason == 'exit code 3' and failure.lines == ('x',) * 15
    assert f'FAILED: exit code 3 ({store.work_dir("program") / "log.txt"})\n    x\n' in printed


def test_run_jobs__one_process_at_a_time(store):
    """The lock is held for as long as a program lives that inherited it, also when its run was killed."""
    holder = (
        'import fcntl, os, sys, time; f = open(sys.argv[1], "w"); fcntl.flock(f, 2); print(flush=True); time.sleep(60)'
    )
    store.work_dir('a').mkdir()
    command = [sys.executable, '-c', holder, str(store.work_dir('a') / 'lock')]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        outcome, _ = run(chores(store, a='', b=''), store)
        process.kill()
    assert 'another process is running this job' in outcome.failures['a'].reason
    assert set(outcome.records) == {'b'}
    assert set(run(chores(store, a='', b=''), store)[0].records) == {'a', 'b'}


def test_time_left__weighs_groups_and_progress(store, monkeypatch):
    """Two jobs of 10 s are done of a group with three, one of another group is half done: 10 + 20 / 2 s are left."""
    for key, seconds in (('a', 10.0), ('b', 10.0), ('d', 20.0)):
        store.write(key, key, {}, seconds=seconds)
    jobs = [Job(key, key, lambda context: {}, group='short' if key < 'd' else 'long') for key in 'abcde']
    state = experiment._Run(jobs, store, Console(file=io.StringIO()), 1, str)
    assert [state.weight(jobs[index]) for index in (2, 4)] == [10, 20]
    assert state.time_left() == ''  # nothing was done in this run
    state.waiting.remove(jobs[4])
    state.running['e'] = jobs[4]
    state.reported['e'] = 0.5
    monkeypatch.setattr(experiment.time, 'monotonic', lambda: state.began + 60 * 10)
    assert state.time_left() == '20 min left'  # 10 of 30 s took 10 minutes


def test_threads_per_job__shares_the_cores(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    assert [threads_per_job(count) for count in (1, 3, 8, 20)] == [8, 2, 1, 1]


def test_store__values_come_back(store):
    record = store.write('key', 'a name', dict(x=torch.tensor([1.5, float('nan')]), y=(1, 'ü')), seconds=1.25)
    assert store.read('key') == record
    assert record.value == {'x': [1.5, None], 'y': [1, 'ü']} and record.seconds == 1.25
    assert json.loads((store.work_dir('key') / 'result.json').read_text())['name'] == 'a name'
    assert store.read('other') is None
    assert [path.name for path in store.work_dir('key').iterdir()] == ['result.json']


def test_store__not_writable(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='Cannot write to .*file.*Give another output folder'):
        Store(tmp_path / 'file')


def test_key_of__readable_and_by_content():
    key = key_of('maps of a/b', seed=1, files={'b': 2, 'a': 1})
    assert key == key_of('maps of a/b', files={'a': 1, 'b': 2}, seed=1) and key.startswith('maps_of_a_b-')
    assert key != key_of('maps of a/b', seed=2, files={'b': 2, 'a': 1})


def test_job_failed__survives_pickling():
    import pickle

    failure = pickle.loads(pickle.dumps(JobFailed('no', 'log.txt', ['a', 'b'])))
    assert str(failure) == 'no (log.txt)\n    a\n    b'
