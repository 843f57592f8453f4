"""metrics.jsonl: what is in a line, and that a run that was stopped and resumed has each iteration once."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer

import mkd_plugin
from mkd_plugin.engine.metrics import DROPPED, METRICS, is_scalar, keep_until, read_metrics
from mkd_plugin.engine.run_folder import run_of

PER_EPOCH, BATCH = 6, 4


class Watch(Hook):
    """Keeps every loss and rate itself."""

    priority = 'LOWEST'

    def __init__(self):
        self.losses, self.rates = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.param_groups[0]['lr'])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


@pytest.mark.parametrize(
    'loop, wanted',
    [
        ('epochs', [4, 6, 10, 12, 16, 18, 22, 24]),
        ('iterations', [4, 8, 12, 16, 20, 24]),
    ],
)
def test_metrics_hook__a_line_has_the_means_since_the_one_before(tmp_path, tiny_run, train, loop, wanted):
    seen = Watch()
    train(tiny_run(tmp_path, loop, **{'default_hooks.checkpoint.interval': 12 if loop == 'iterations' else 1}), seen)
    rows = read_metrics(tmp_path / METRICS)
    assert [row['iter'] for row in rows] == wanted
    for start, row in zip([0, *wanted], rows, strict=False):
        end = row['iter']
        assert row['mode'] == 'train' and row['stage'] == (1 if end <= 2 * PER_EPOCH else 2)
        assert row.get('epoch') == ((end - 1) // PER_EPOCH + 1 if loop == 'epochs' else None)
        assert row['loss'] == row['loss_feature'] == pytest.approx(statistics.mean(seen.losses[start:end]), rel=1e-6)
        assert row['lr'] == pytest.approx(seen.rates[end - 1], rel=1e-6)
        assert row['images_per_s'] == pytest.approx(BATCH / row['time'], rel=1e-6)
        assert {'data_time', 'feature_target_std', 'hidden_share'} <= row.keys()


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_metrics_hook__a_resumed_run_has_every_iteration_once(tmp_path, tiny_run, train, loop):
    train(tiny_run(tmp_path / 'whole', loop))
    cfg = tiny_run(tmp_path / 'killed', loop)
    path = tmp_path / 'killed' / METRICS
    for step in (9, 14):  # checkpoints are of 6 and 12, or of 6 and 12 among every third
        with pytest.raises(Stop):
            train(cfg, at=(step, stop))
        assert read_metrics(path)[-1]['iter'] == step - 1  # the run stopped before its hooks saw the last one
        with path.open('a') as file:
            file.write('{"mode": "train", "iter": 1')  # as a kill would leave it
    train(cfg)
    whole, killed = read_metrics(tmp_path / 'whole' / METRICS), read_metrics(path)
    assert [row['iter'] for row in killed] == [row['iter'] for row in whole]
    for ours, theirs in zip(killed, whole, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ('loss', 'lr', 'stage', 'feature_target_std'):
            assert ours[name] == theirs[name]
    assert '"iter": 1\n' not in path.read_text()


def test_metrics_hook__a_run_that_starts_anew_never_empties_the_file(tmp_path, tiny_run, train):
    cfg = tiny_run(tmp_path, resume=False)
    with pytest.raises(Stop):
        train(cfg, at=(6, stop))
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(ValueError, match='holds a run already'):
        train(cfg)
    assert (tmp_path / METRICS).read_bytes() == before
    with pytest.raises(Stop):  # there is no checkpoint yet, so all iterations are repeated
        train(tiny_run(tmp_path), at=(6, stop))
    assert [row['iter'] for row in read_metrics(tmp_path / METRICS)] == [4, 5]
    assert (tmp_path / DROPPED).read_bytes() == before
    runs = {row['run'] for name in (METRICS, DROPPED) for row in read_metrics(tmp_path / name)}
    assert runs == {run_of(tmp_path)}


def test_metrics_hook__rubbish_in_the_file_is_named_and_kept_aside(tmp_path, tiny_run, train, monkeypatch):
    with pytest.raises(Stop):
        train(tiny_run(tmp_path), at=(14, stop))
    path, rubbish, warnings = tmp_path / METRICS, os.urandom(300).replace(b'\n', b'').replace(b'\r', b'') + b'\xff', []
    first, *rest = path.read_bytes().splitlines(keepends=True)
    other = first.replace(run_of(tmp_path).encode(), b'another')
    path.write_bytes(first + b'\x00' * 20 + rubbish + b'\n' + other + b'[' * 50_000 + b'\n' + b''.join(rest))
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message, *args: warnings.append(str(message)))
    train(tiny_run(tmp_path))
    assert f'{path} is damaged: 2 lines that cannot be read are now in {DROPPED}.' in warnings
    assert [row['iter'] for row in read_metrics(path)] == [4, 6, 10, 12, 16, 18, 22, 24]
    kept_aside = (tmp_path / DROPPED).read_bytes()
    assert rubbish in kept_aside and other in kept_aside


def test_metrics_hook__a_deleted_work_dir_is_named_and_not_made_again(tmp_path, tiny_run, train):
    folder = tmp_path / 'run'
    for interval in (2, 100):  # found by a line of metrics, or by a checkpoint
        with pytest.raises(ValueError, match=rf'work_dir={folder} was deleted or moved'):
            train(tiny_run(folder, interval=interval), at=(8, lambda runner, outputs: shutil.rmtree(folder)))
        assert not folder.exists()


def test_keep_until__replaces_the_file_or_leaves_it_alone(tmp_path):
    path = tmp_path / METRICS
    keep_until(path, 5)
    assert not path.exists()
    lines = [json.dumps({'mode': mode, 'iter': i}) for mode, i in (('train', 3), ('val', 5), ('train', 6), ('val', 6))]
    path.write_text('\n'.join(lines) + '\n')
    inode = path.stat().st_ino
    keep_until(path, 6)
    assert path.stat().st_ino == inode
    keep_until(path, 5)
    assert path.read_text() == '\n'.join(lines[:2]) + '\n' and path.stat().st_ino != inode
    path.write_text(path.read_text() + 'null\n[1]\n{"iter": "2"}\n{"it')
    assert keep_until(path, 100) == 3  # the last one is that of a kill
    assert path.read_text() == '\n'.join(lines[:2]) + '\n'
    assert {file.name for file in tmp_path.iterdir()} == {METRICS, DROPPED}
    assert (tmp_path / DROPPED).read_text() == '\n'.join(lines[2:]) + '\nnull\n[1]\n{"iter": "2"}\n{"it\n'


def fine_tuning(folder, written_digits):
    from mkd_plugin.datasets import draw_labelled

    cfg = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    cfg.work_dir, cfg.log_level = str(folder), 'ERROR'
    cfg.model.backbone.update(arch=dict(width=16, depth=1, num_heads=2), patch_size=8)
    cfg.model.head.in_channels = 16
    listed = draw_labelled(written_digits, 2, 0).relative_to(written_digits)
    cfg.train_dataloader.dataset.update(data_root=str(written_digits), ann_file=str(listed))
    cfg.val_dataloader.dataset.data_root = str(written_digits)
    cfg.train_cfg.update(max_iters=6, val_interval=3)
    cfg.param_scheduler = cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    return cfg


def test_metrics_hook__validation_of_a_fine_tuning(tmp_path, written_digits, one_thread, train):
    runner = train(fine_tuning(tmp_path, written_digits))
    rows = read_metrics(tmp_path / METRICS)
    assert [(row['mode'], row['iter']) for row in rows] == [
        ('train', 3), ('val', 3), ('train', 6), ('val', 6),
    ]  # fmt: skip
    scores = runner.message_hub.get_scalar('val/accuracy/top1').data[0]
    assert [row['accuracy/top1'] for row in rows if row['mode'] == 'val'] == pytest.approx(scores, rel=1e-6)
    assert list(tmp_path.glob('*/vis_data/events.out.tfevents.*'))
    runner.val()  # by itself it is no part of the run
    assert len(read_metrics(tmp_path / METRICS)) == 4


class StopInValidation(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            raise Stop


@pytest.mark.parametrize('killed', [3, 6])
@pytest.mark.parametrize('by_epoch', [False, True])
def test_resume__repeats_the_validation_in_which_a_run_was_killed(
    tmp_path, written_digits, one_thread, train, by_epoch, killed
):
    def config(name):
        cfg = fine_tuning(tmp_path / name, written_digits)
        cfg.default_hooks.checkpoint.update(by_epoch=by_epoch, interval=1, save_best='accuracy/top1')
        cfg.default_hooks.logger.interval = 1
        if by_epoch:  # of three iterations
            cfg.train_dataloader.update(batch_size=8, sampler=dict(type='DefaultSampler', shuffle=True))
            cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)
        cfg.resume = True
        return cfg

    def scores(name):
        rows = [row for row in read_metrics(tmp_path / name / METRICS) if row['mode'] == 'val']
        return [(row['iter'], row['accuracy/top1']) for row in rows]

    train(config('whole'))
    with pytest.raises(Stop):
        train(config('killed'), StopInValidation(killed))
    assert len(scores('killed')) == killed // 3 - 1
    for _ in range(2):  # once more when it is complete
        train(config('killed'))
        assert scores('killed') == scores('whole') and [done for done, _ in scores('whole')] == [3, 6]
    assert [sorted(path.name for path in (tmp_path / name).glob('best_*')) for name in ('whole', 'killed')][0]
    assert len({tuple(path.name for path in (tmp_path / n).glob('best_*')) for n in ('whole', 'killed')}) == 1


def test_metrics_hook__tensorboard_has_what_the_log_had_when_a_run_is_stopped(tmp_path, tiny_run, train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = tiny_run(tmp_path, interval=1)
    cfg.visualizer = mkd_plugin.get_config('dbot/dbot_digits').visualizer
    with pytest.raises(Stop):
        train(cfg, at=(4, stop))
    (folder,) = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder))
    events.Reload()
    rows = read_metrics(tmp_path / METRICS)
    assert [point.step for point in events.Scalars('lr')] == [row['iter'] for row in rows] == [1, 2, 3]
    assert [point.value for point in events.Scalars('lr')] == pytest.approx([row['lr'] for row in rows], rel=1e-6)


def test_metrics_hook__nan_is_null(tmp_path, tiny_run, train):
    def poison(runner, outputs):
        outputs['loss'] = outputs['loss'] * float('nan')
        outputs['loss_feature'] = outputs['loss_feature'] * float('inf')

    with pytest.raises(FloatingPointError, match='step 7'):
        train(tiny_run(tmp_path, interval=1), at=(7, poison))
    text = (tmp_path / METRICS).read_text()
    assert 'NaN' not in text and 'Infinity' not in text
    last = read_metrics(tmp_path / METRICS)[-1]
    assert (last['iter'], last['loss'], last['loss_feature']) == (7, None, None) and last['lr'] > 0


def test_metrics_hook__a_disk_that_is_full_does_not_stop_the_run(tmp_path, tiny_run, train, monkeypatch):
    opened = Path.open

    def full(self, mode='r', *args, **kwargs):
        if self.name == METRICS and mode == 'a':
            raise OSError(28, 'No space left on device')
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', full)
    assert train(tiny_run(tmp_path)).iter == 4 * PER_EPOCH
    assert not (tmp_path / METRICS).exists()


@pytest.mark.parametrize(
    'value, wanted',
    [(1, True), (0.5, True), (torch.ones(1), True), (torch.ones(2), False), ([1.0], False), ('high', False)],
)
def test_is_scalar__takes_one_number(value, wanted):
    assert is_scalar(value) == wanted


@pytest.fixture(autouse=True)
def closed_visualizers():
    """mmengine keeps every visualizer: their files are closed by the runs, their names are forgotten here."""
    yield
    Visualizer._instance_dict.clear()
