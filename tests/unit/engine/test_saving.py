"""Checkpoints that are written beside training, by time, and for no more than a share of it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.logging import MMLogger

from mkd_plugin.engine import AtomicCheckpointHook, saving
from mkd_plugin.engine.checkpoints import newest_checkpoint


class Watch(Hook):
    """Keeps which checkpoints are there after each step, and a weight."""

    priority = 'LOWEST'

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[int, list[str]] = {}
        self.weights: dict[int, torch.Tensor] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen[runner.iter + 1] = sorted(path.name for path in self.folder.glob('*.pth') if 'stage' not in path.name)
        self.weights[runner.iter + 1] = runner.model.backbone.cls_token.detach().clone()


@pytest.fixture
def slow_disk(monkeypatch):
    """Holds every write of an epoch's checkpoint until it is released."""
    release, put = threading.Event(), LocalBackend.put

    def held(self, data, path):
        if 'epoch' in str(path):
            release.wait(20)
        put(self, data, path)

    monkeypatch.setattr(LocalBackend, 'put', held)
    return release


def test_checkpoint_hook__training_goes_on_while_the_state_of_its_step_is_written(
    tmp_path, tiny_run, train, slow_disk, monkeypatch
):
    lines, watch = [], Watch(tmp_path)
    monkeypatch.setattr(MMLogger, 'info', lambda self, message, *args: lines.append(str(message)))
    cfg = tiny_run(tmp_path, **{'default_hooks.checkpoint.max_keep_ckpts': -1})
    train(cfg, watch, at=(9, lambda runner, outputs: slow_disk.set()))  # a third of the next epoch later
    assert watch.seen[8] == [] and watch.seen[13] != []
    for epoch in range(1, 5):
        saved = torch.load(tmp_path / f'epoch_{epoch}.pth', weights_only=True)
        assert saved['meta']['iter'] == 6 * epoch
        if epoch != 2:  # after whose end the student is drawn anew
            assert torch.equal(saved['state_dict']['backbone.cls_token'], watch.weights[6 * epoch])
        assert {int(entry['step']) for entry in saved['optimizer']['state'].values()} == {6 * epoch}
    told = [line for line in lines if 'is written. It held training for' in line]
    assert [line.split('.pth')[0] for line in told] == [f'epoch_{n}' for n in range(1, 5)]


def test_checkpoint_hook__a_failed_write_stops_the_run_at_its_next_step(tmp_path, tiny_run, train, monkeypatch):
    watch, put = Watch(tmp_path), LocalBackend.put

    def fail(self, data, path):
        if 'epoch_2' in str(path):
            raise OSError(28, 'No space left on device')
        put(self, data, path)

    monkeypatch.setattr(LocalBackend, 'put', fail)

    def wait(runner, outputs):
        with pytest.raises(OSError):
            next(hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)).writing.result(20)

    with pytest.raises(OSError, match=r'epoch_2.pth could not be written \(No space .* is .*epoch_1.pth. Free space'):
        train(tiny_run(tmp_path), watch, at=(13, wait))
    assert max(watch.seen) == 12 and newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')


class Clock:
    """A clock on which a step takes a minute, and saving as long as given."""

    def __init__(self, saving_takes: float) -> None:
        self.now, self.saving_takes = 0.0, saving_takes

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Replaces the hook's clock; ``build(seconds of a save)`` returns a hook that moves it."""

    def build(saving_takes: float) -> Hook:
        moved, take = Clock(saving_takes), saving.take_state

        def slow(runner, **options):
            moved.now += moved.saving_takes
            return take(runner, **options)

        class Tick(Hook):
            priority = 'HIGHEST'

            def before_train_iter(self, runner, batch_idx, data_batch=None):
                moved.now += 60

        monkeypatch.setattr(saving, 'time', moved)
        monkeypatch.setattr(saving, 'take_state', slow)
        return Tick()

    return build


BY_TIME = {
    'default_hooks.checkpoint.interval': 4,
    'default_hooks.checkpoint.minutes': 3,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
}


@pytest.fixture
def saves(monkeypatch) -> list[tuple[str, int]]:
    """(name, iterations) of each checkpoint that is written."""
    found, save = [], AtomicCheckpointHook._save

    def record(self, runner, name, meta, **options):
        found.append((name, meta['iter']))
        save(self, runner, name, meta, **options)

    monkeypatch.setattr(AtomicCheckpointHook, '_save', record)
    return found


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_checkpoint_hook__saves_by_time_where_the_log_has_a_line_and_at_the_end_of_a_stage(
    tmp_path, tiny_run, train, clock, saves, loop
):
    interval = {'default_hooks.checkpoint.interval': 24} if loop == 'iterations' else {}
    train(tiny_run(tmp_path, loop, interval=2, **{**BY_TIME, **interval}), clock(0.1))
    last = 'epoch_4.pth' if loop == 'epochs' else 'iter_24.pth'
    every = [4, 8, 12, 16, 20]
    assert saves == [*(('recent.pth', step) for step in every), (last, 24)]
    assert not (tmp_path / 'recent.pth').exists()


def test_checkpoint_hook__leaves_out_what_would_hold_training_too_long(tmp_path, tiny_run, train, clock, saves):
    options = {**BY_TIME, 'default_hooks.checkpoint.interval': 1, 'default_hooks.checkpoint.minutes': 1000}
    train(tiny_run(tmp_path, **options), clock(800.0))  # two percent of 1000 minutes are 1200 seconds
    assert saves == [('epoch_1.pth', 6), ('epoch_2.pth', 12), ('epoch_4.pth', 24)]  # a stage's end, and the last


def stop(runner, outputs):
    raise KeyError('stop')


def test_checkpoint_hook__resumes_from_the_recent_one_to_the_same_weights(tmp_path, tiny_run, train, clock):
    train(tiny_run(tmp_path / 'whole', interval=2, **BY_TIME), clock(0.1))
    cfg = tiny_run(tmp_path / 'stopped', interval=2, **BY_TIME)
    for step in (6, 11):
        with pytest.raises(KeyError):
            train(cfg, clock(0.1), at=(step, stop))
    assert newest_checkpoint(tmp_path / 'stopped') == str(tmp_path / 'stopped' / 'recent.pth')
    train(cfg, clock(0.1))
    whole, stopped = (
        torch.load(tmp_path / name / 'epoch_4.pth', weights_only=True)['state_dict'] for name in ('whole', 'stopped')
    )
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


@pytest.mark.parametrize('minutes', [0, -1.5, 'often', float('nan')])
def test_checkpoint_hook__refuses_a_time_that_is_none(minutes):
    with pytest.raises(ValueError, match=f'minutes={minutes!r}: it must be a positive number, such as 15'):
        AtomicCheckpointHook(minutes=minutes)


def test_save_checkpoint__copies_while_the_weights_change(tmp_path):
    """The copy is taken before training goes on: the thread never sees a tensor that is being trained."""
    weight = torch.zeros(1000)

    class Saves:
        work_dir = str(tmp_path)
        _hooks: list[Hook] = []

        def save_checkpoint(self, folder, name, **options):
            for hook in self._hooks:
                hook.before_save_checkpoint(self, dict(weight=weight))
            raise AssertionError('it was written')

    state = saving.take_state(Saves())
    weight += 1
    assert state is not None and state['weight'].sum() == 0 and not Saves._hooks and not list(tmp_path.iterdir())


class Judges(Hook):
    """Gives the scores of a validation after each epoch, as numpy's numbers, which mmseg gives; notes the best files."""

    def __init__(self, folder: Path, scores: list[float]) -> None:
        self.folder, self.scores, self.seen = folder, iter(scores), list[set[str]]()

    def before_train_epoch(self, runner):
        if runner.epoch:
            saving = next(hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook))
            saving.after_val_epoch(runner, dict(score=np.float64(next(self.scores))))

    def before_save_checkpoint(self, runner, checkpoint):
        self.seen.append({path.name for path in self.folder.glob('best_*.pth')})


def test_checkpoint_hook__keeps_the_best_one_until_a_better_one_is_written_also_when_resumed(tmp_path, tiny_run, train):
    best = {'default_hooks.checkpoint.save_best': 'score', 'default_hooks.checkpoint.rule': 'greater'}
    judges = Judges(tmp_path, [0.3, 0.5])
    with pytest.raises(KeyError):
        train(tiny_run(tmp_path, **best), judges, at=(14, stop))
    first = judges.seen.index({'best_score_epoch_1.pth'})
    assert first > 0 and all(judges.seen[first:])
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_score_epoch_2.pth']
    train(tiny_run(tmp_path, **best), Judges(tmp_path, [0.4, 0.2]))
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_score_epoch_2.pth']
    saved = torch.load(tmp_path / 'epoch_4.pth', weights_only=True)
    assert saved['message_hub']['runtime_info']['best_score'] == 0.5
