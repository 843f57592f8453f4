"""curves.png: drawn however a run ends, and never at the cost of how it ends."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger

from mkd_plugin.engine.curves import signals_ignored
from mkd_plugin.engine.guards import REQUEUE
from mkd_plugin.engine.metrics import METRICS, read_metrics
from mkd_plugin.engine.run_utils import when_run_ends

CURVES = {'default_hooks.curves': dict(type='mkd_plugin.CurvesHook')}


def told(number):
    return lambda runner, outputs: os.kill(os.getpid(), number)


def interrupt(runner, outputs):
    raise KeyboardInterrupt


def poison(runner, outputs):
    outputs['loss'] = outputs['loss'] * float('nan')


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[list[int], str]]:
    """(iterations, title) of each picture that is drawn."""
    import mkd_plugin.engine.curves

    calls, draw = [], mkd_plugin.engine.curves.draw_curves

    def record(rows, out, *, title):
        calls.append(([row['iter'] for row in rows], title))
        return draw(rows, out, title=title)

    monkeypatch.setattr(mkd_plugin.engine.curves, 'draw_curves', record)
    return calls


@pytest.mark.parametrize(
    'action, error, how, last',
    [
        (told(signal.SIGTERM), SystemExit, 'preempted after 8 of 24 iterations', 8),
        (interrupt, KeyboardInterrupt, 'interrupted after 7 of 24 iterations', 7),
        (told(signal.SIGINT), SystemExit, 'interrupted after 8 of 24 iterations', 8),
        (poison, FloatingPointError, 'FloatingPointError after 8 of 24 iterations', 8),
    ],
    ids=['SIGTERM', 'second Ctrl-C', 'Ctrl-C', 'NaN'],
)
def test_curves_hook__draws_when_a_run_is_stopped_and_all_of_it_when_it_is_resumed(
    tmp_path, tiny_run, train, drawn, action, error, how, last
):
    cfg = tiny_run(tmp_path / 'run', interval=2, **CURVES)
    with pytest.raises(error) as caught:
        train(cfg, at=(8, action))
    assert error is not SystemExit or caught.value.code == (130 if 'interrupted' in how else REQUEUE)
    picture = tmp_path / 'run' / 'curves.png'
    size = picture.stat().st_size
    assert drawn == [([2, 4, 6, last], f'run: {how}')]
    train(cfg)
    assert drawn[1:] == [(list(range(2, 25, 2)), 'run: complete after 24 iterations')]
    assert picture.stat().st_size != size


def test_curves_hook__a_picture_that_fails_changes_neither_exit_code_nor_checkpoint(
    tmp_path, tiny_run, train, monkeypatch
):
    def fail(rows, out, *, title):
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does when another process has left
        raise MemoryError('too big')

    warnings = []
    monkeypatch.setattr('mkd_plugin.engine.curves.draw_curves', fail)
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message, *args: warnings.append(str(message)))
    with pytest.raises(SystemExit) as caught:
        train(tiny_run(tmp_path, **CURVES), at=(3, told(signal.SIGTERM)))
    assert caught.value.code == REQUEUE and (tmp_path / 'preempted.pth').is_file()
    assert warnings[-1] == f'{tmp_path}/curves.png could not be drawn: MemoryError: too big'
    assert read_metrics(tmp_path / METRICS)[-1]['iter'] == 3


def test_curves_hook__an_error_before_the_first_line_draws_nothing(tmp_path, tiny_run, train, drawn):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(tmp_path, **CURVES), at=(1, interrupt))
    assert drawn == [] and not (tmp_path / 'curves.png').exists()


def test_signals_ignored__gives_the_handlers_back():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with signals_ignored():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_when_run_ends__the_first_action_is_called_first_and_the_error_goes_on():
    told_of = []

    def fail():
        raise KeyError('lost')

    loop = SimpleNamespace(run=fail)
    runner = SimpleNamespace(train_loop=loop)
    when_run_ends(runner, lambda error: told_of.append(('first', error)))
    when_run_ends(runner, lambda error: told_of.append(('second', error)))
    with pytest.raises(KeyError) as caught:
        loop.run()
    assert told_of == [('first', caught.value), ('second', caught.value)]
    loop.run = lambda: 'model'
    when_run_ends(runner, told_of.append)
    assert loop.run() == 'model' and told_of[2:] == [None]


def test_when_run_ends__last_comes_last_and_no_action_is_left_out():
    order = []
    loop = SimpleNamespace(run=lambda: 'model')
    runner = SimpleNamespace(train_loop=loop)
    when_run_ends(runner, lambda error: order.append('release'), last=True)
    when_run_ends(runner, lambda error: order.append(1 / 0))
    when_run_ends(runner, lambda error: order.append('draw'))
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert order == ['draw', 'release']
