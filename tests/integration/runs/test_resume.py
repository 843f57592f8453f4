"""A killed and resumed run ends like an uninterrupted one: with real processes, and piece by piece."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.engine import AtomicCheckpointHook, PreemptionHook
from mkd_plugin.engine.checkpoints import newest_checkpoint

kill_resume = importlib.import_module('kill_resume')
Scenario, build_config, differences = kill_resume.Scenario, kill_resume.build_config, kill_resume.differences

LOOPS = [Scenario('epochs', 0), Scenario('epochs', 0, 4), Scenario('iterations', 0, 2)]
STEPS = kill_resume.EPOCH * kill_resume.EPOCHS


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    from mkd_plugin.datasets import write_digits

    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class At(Hook):
    """Calls a function after an iteration, before anything is saved."""

    priority = 'HIGHEST'

    def __init__(self, step, action):
        self.step, self.action = step, action

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            self.action(runner, outputs)


def run(cfg, *hooks) -> Runner:
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


def test_run__killed_twelve_times_over_both_loops_and_a_breakpoint(tmp_path):
    """With a pause: the kill test goes on where it was stopped, with the uninterrupted runs that it has."""
    seed = int.from_bytes(os.urandom(4), 'big')
    for kills in (6, 12):
        test = kill_resume.KillTest(tmp_path, seed=seed, scenarios=kill_resume.DBOT)
        test.run(kills, per_run=3)
        assert test.kills == kills
    results = json.loads((tmp_path / kill_resume.RESULTS).read_text())
    assert sum(run['kills'] for run in results['runs']) == 12 and len(results['references']) == 4
    with pytest.raises(ValueError, match='with other code or another seed. Give another --folder'):
        kill_resume.KillTest(tmp_path, seed=seed + 1)


@pytest.mark.slow
def test_run__killed_in_two_processes_as_a_detector_and_as_a_segmentor(tmp_path):
    scenarios = [scenario for scenario in kill_resume.SCENARIOS if scenario not in kill_resume.DBOT]
    test = kill_resume.KillTest(tmp_path, scenarios=scenarios)
    test.run(len(scenarios), per_run=1)
    assert test.kills == len(scenarios)


@pytest.mark.parametrize('scenario', LOOPS, ids=str)
def test_preemption__saves_at_the_next_optimizer_step_and_resumes_to_the_same_weights(digits, tmp_path, scenario):
    run(build_config(scenario, digits, tmp_path / 'whole'))
    # 6: an epoch's last iteration
    for name, steps in (('SIGTERM', (2, 9)), ('SIGUSR1', (kill_resume.EPOCH, 13)), ('SIGINT', (3,))):
        cfg = build_config(scenario, digits, tmp_path / name)
        for step in steps:
            handler = signal.getsignal(signal.Signals[name])
            with pytest.raises(SystemExit) as caught:
                number = signal.Signals[name]
                run(cfg, At(step, lambda runner, outputs, number=number: os.kill(os.getpid(), number)))
            assert (
                caught.value.code == (130 if name == 'SIGINT' else 85)
                and signal.getsignal(signal.Signals[name]) == handler
            )
            saved = read_checkpoint(tmp_path / name / 'preempted.pth')['meta']
            assert saved['iter'] == -(-step // scenario.accumulate) * scenario.accumulate
        run(cfg)
        assert differences(tmp_path / 'whole', tmp_path / name) == []  # which also says that preempted.pth is gone


def test_preemption__refuses_nonsense():
    with pytest.raises(ValueError, match='at least 1'):
        PreemptionHook(agree_every=0)


def test_resume__with_a_momentum_teacher(digits, tmp_path):
    def config(name):
        cfg = build_config(Scenario('epochs', 0), digits, tmp_path / name)
        cfg.model.teachers.boot = dict(type='MomentumTeacher', momentum=0.9)
        cfg.param_scheduler[1].end = kill_resume.EPOCHS
        return cfg

    run(config('whole'))
    with pytest.raises(Stop):
        run(config('stopped'), At(15, stop))
    run(config('stopped'))
    assert differences(tmp_path / 'whole', tmp_path / 'stopped') == []


def test_checkpoints__fall_on_optimizer_steps(digits, tmp_path):
    cfg = build_config(Scenario('epochs', 0, 4), digits, tmp_path)
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    run(cfg)
    metas = [read_checkpoint(tmp_path / f'epoch_{epoch}.pth')['meta'] for epoch in range(1, 5)]
    assert [(meta['epoch'], meta['iter']) for meta in metas] == [(1, 8), (2, 12), (3, 20), (4, 24)]


def test_checkpoints__old_one_goes_only_when_the_new_one_is_there(digits, tmp_path, monkeypatch):
    there = []
    forget = AtomicCheckpointHook._forget

    def watched(self, steps):
        there.append(sorted(path.name for path in tmp_path.glob('epoch_*')))
        forget(self, steps)

    monkeypatch.setattr(AtomicCheckpointHook, '_forget', watched)
    run(build_config(Scenario('epochs', 0), digits, tmp_path))
    assert there == [['epoch_1.pth'], *([f'epoch_{n}.pth', f'epoch_{n + 1}.pth'] for n in (1, 2, 3))]
    assert sorted(path.name for path in tmp_path.glob('epoch_*')) == ['epoch_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == 'epoch_4.pth'


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
def test_checkpoints__full_disk_keeps_the_last_good_one(digits, tmp_path, monkeypatch, number):
    put = LocalBackend.put

    def full(self, data, path):
        if 'epoch_2' in str(path):
            put(self, data[:1000], path)
            raise OSError(number, os.strerror(number))
        put(self, data, path)

    monkeypatch.setattr(LocalBackend, 'put', full)
    with pytest.raises(OSError, match=rf'epoch_2.pth could not be written \({os.strerror(number)}.*epoch_1.pth. Free'):
        run(build_config(Scenario('epochs', 0), digits, tmp_path))
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
    assert not list(tmp_path.glob('*.tmp')) and not (tmp_path / 'epoch_2.pth').exists()


def test_checkpoint_hook__refuses_a_misspelt_option():
    with pytest.raises(ValueError, match=r"no option \['intervall'\]"):
        AtomicCheckpointHook(intervall=1)


def stopped(digits, folder):
    """A config whose run was stopped in its second epoch."""
    cfg = build_config(Scenario('epochs', 0), digits, folder)
    with pytest.raises(Stop):
        run(cfg, At(8, stop))
    return cfg


def test_resume__refuses_a_changed_config_and_lists_the_changes(digits, tmp_path):
    cfg = stopped(digits, tmp_path)
    cfg.model.backbone.drop_path_rate = 0.1
    cfg.optim_wrapper.optimizer.lr = 0.5
    cfg.train_dataloader.batch_size = 2
    with pytest.raises(ValueError) as caught:
        run(cfg)
    for line in (
        'model.backbone.drop_path_rate: 0.3 → 0.1',
        'optim_wrapper.optimizer.lr: 0.001 → 0.5',
        'train_dataloader.batch_size: 4 → 2',
        'allow_changed_config',
    ):
        assert line in str(caught.value)
    cfg.default_hooks.exact_resume.allow_changed_config = True
    assert (
        run(cfg).iter == 12 * kill_resume.EPOCHS - kill_resume.EPOCH
    )  # twice as many iterations an epoch from then on


def test_resume__does_not_mind_what_changes_no_number(digits, tmp_path):
    cfg = stopped(digits, tmp_path)
    cfg.train_dataloader.update(num_workers=1, pin_memory=False)
    cfg.log_level, cfg.default_hooks.logger.interval = 'CRITICAL', 3
    cfg.model.backbone.init_cfg = None  # says what was the case
    assert run(cfg).iter == STEPS


def test_load_from__does_not_compare_configs(digits, tmp_path):
    cfg = stopped(digits, tmp_path / 'first')
    cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path / 'second'), False, str(tmp_path / 'first' / 'epoch_1.pth')
    cfg.optim_wrapper.optimizer.lr = 0.5
    with pytest.raises(Stop):
        run(cfg, At(1, stop))


def test_resume__with_the_hosts_own_checkpoint_hook(digits, tmp_path):
    def config(name):
        cfg = build_config(Scenario('epochs', 0), digits, tmp_path / name)
        cfg.default_hooks.checkpoint.type = 'CheckpointHook'
        return cfg

    run(config('whole'))
    with pytest.raises(Stop):
        run(config('stopped'), At(8, stop))
    run(config('stopped'))
    assert differences(tmp_path / 'whole', tmp_path / 'stopped') == []


def poison_loss(runner, outputs):
    outputs['loss'] = outputs['loss'] * float('nan')


def poison_weight(runner, outputs):
    with torch.no_grad():
        runner.model.backbone.cls_token[:] = float('inf')


@pytest.mark.parametrize(
    'action, message',
    [
        (poison_loss, 'The loss of step 10 is nan; .*epoch_1.pth'),
        (poison_weight, r'After step 12 backbone.cls_token holds NaN or infinity; .*epoch_1.pth'),
    ],
)
def test_finite_loss__stops_before_anything_bad_is_saved(digits, tmp_path, action, message):
    cfg = build_config(Scenario('epochs', 0), digits, tmp_path)
    step = 10 if action is poison_loss else 12
    with pytest.raises(FloatingPointError, match=message):
        run(cfg, At(step, action))
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')


def agree_on_rank(rank: int, folder: Path) -> None:
    """One of two processes, of which the second was told to stop."""
    import torch.distributed as dist

    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    hook = PreemptionHook(agree_every=2)
    hook.received = 'SIGTERM' if rank else None
    runner = SimpleNamespace(optim_wrapper=SimpleNamespace(_accumulative_counts=3))
    torch.save([hook._agreed(runner, done) for done in (3, 6)], folder / f'{rank}.pth')


def test_preemption__processes_stop_together(tmp_path):
    torch.multiprocessing.spawn(agree_on_rank, (tmp_path,), nprocs=2)
    assert [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)] == [[0, 85]] * 2
