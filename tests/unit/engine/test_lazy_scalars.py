"""Between two lines of the log nothing is read from the device, in a whole run; and what is logged stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mkd_plugin
from mkd_plugin.engine.lazy_scalars import LazyMessageHub, keep_norm
from mkd_plugin.engine.metrics import METRICS, read_metrics

INTERVAL, CLIP = 4, {'optim_wrapper.clip_grad': dict(max_norm=0.5), 'optim_wrapper.optimizer.fused': True}
MOMENTUM = {
    'model.teachers.boot': dict(_delete_=True, type='MomentumTeacher', momentum=0.9),
    'param_scheduler.1.end': 4,
}
MMENGINES = {'default_hooks.runtime_info': dict(type='mmengine.RuntimeInfoHook')}
READING = {'item', 'tolist', 'numpy', 'cpu', '__bool__', '__float__', '__int__', '__index__', '__array__', 'nonzero'}
READING_OPERATIONS = {'_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', 'equal', '_unique2'}


class ReadBack(AssertionError):
    """A value was read from the device between two lines of the log."""


class CallTrap(TorchFunctionMode):
    """Refuses what reads a tensor's values from Python. On a CPU some of it reaches no operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, '__name__', '') in READING:
            raise ReadBack(func.__name__)
        return func(*args, **(kwargs or {}))


class OperationTrap(TorchDispatchMode):
    """Refuses operations with which torch itself reads values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READING_OPERATIONS:
            raise ReadBack(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Trap(Hook):
    """Sets both traps around every iteration after which the log has no line: the step and all hooks of both ends."""

    def before_train(self, runner):
        self.trapped, run_iter, loop = [], runner.train_loop.run_iter, runner.train_loop

        def guarded(*args):
            done = runner.iter + 1
            if done % 6 % INTERVAL == 0:  # the log's lines, and the ends of epochs of six iterations
                return run_iter(*args)
            self.trapped.append(done)
            with CallTrap(), OperationTrap():
                return run_iter(*args)

        loop.run_iter = guarded


@pytest.fixture
def recipes_precision(monkeypatch):
    """mmengine has mixed precision on accelerators only."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    wrapper = mkd_plugin.get_config('dbot/dbot_vit-base-p16_8xb512-2x800e_in1k').optim_wrapper
    return {f'optim_wrapper.{name}': wrapper[name] for name in ('type', 'dtype', 'loss_scale')}


def test_run__in_bfloat16_has_no_scaler_and_reads_nothing_back(tmp_path, tiny_run, train, recipes_precision):
    runner = train(tiny_run(tmp_path, interval=INTERVAL, **CLIP, **recipes_precision), Trap())
    assert runner.optim_wrapper.cast_dtype == torch.bfloat16 and not runner.optim_wrapper.loss_scaler.is_enabled()


@pytest.mark.parametrize('method', [{}, MOMENTUM], ids=['bootstrapped', 'momentum'])
def test_run__reads_nothing_back_between_two_lines_of_the_log(tmp_path, tiny_run, train, method):
    trap = Trap()
    train(tiny_run(tmp_path, interval=INTERVAL, **CLIP, **method), trap)
    assert trap.trapped == [n for n in range(1, 25) if n % 6 in (1, 2, 3, 5)]
    rows = read_metrics(tmp_path / METRICS)
    assert len(rows) == 8 and all(row['loss'] > 0 and row['grad_norm'] > 0 for row in rows)


@pytest.mark.parametrize(
    'culprit, reads',
    [
        (MMENGINES, '__float__'),  # of the gradient norm
        ({**MMENGINES, 'optim_wrapper.clip_grad': None}, 'item'),
        ({'optim_wrapper.optimizer.fused': False}, 'item'),
    ],
    ids=['clipping', 'hook', 'optimizer that is not fused'],
)
def test_run__the_trap_catches_what_reads(tmp_path, tiny_run, train, culprit, reads):
    with pytest.raises(ReadBack, match=reads):
        train(tiny_run(tmp_path, interval=INTERVAL, **{**CLIP, **culprit}), Trap())


def test_lazy_scalars_hook__log_and_checkpoints_are_those_of_mmengine(tmp_path, tiny_run, train):
    runners = [
        train(tiny_run(tmp_path / name, interval=INTERVAL, **CLIP, **options))
        for name, options in (('lazy', {}), ('mmengine', MMENGINES))
    ]
    rows = [read_metrics(tmp_path / name / METRICS) for name in ('lazy', 'mmengine')]
    kinds = [type(runner.message_hub) for runner in runners]
    assert kinds == [LazyMessageHub, MessageHub]
    for ours, theirs in zip(*rows, strict=True):
        timed = {'time', 'data_time', 'images_per_s', 'run'}
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}
    saved = [torch.load(tmp_path / name / 'epoch_4.pth', weights_only=True) for name in ('lazy', 'mmengine')]
    histories = [checkpoint['message_hub']['log_scalars'] for checkpoint in saved]
    assert histories[0].keys() == histories[1].keys() and len(histories[0]['train/grad_norm']['values']) == 24
    for name in histories[0].keys() - {'train/time', 'train/data_time'}:
        assert histories[0][name] == histories[1][name]
    for name, weight in saved[0]['state_dict'].items():
        assert torch.equal(weight, saved[1]['state_dict'][name])


def make_lazy(name: str) -> LazyMessageHub:
    hub = MessageHub.get_instance(name)
    hub.__class__, hub.pending = LazyMessageHub, {}
    return hub


def test_lazy_message_hub__keeps_order_types_and_counts(tmp_path: Path):
    lazy, eager = make_lazy(f'lazy {tmp_path}'), MessageHub.get_instance(f'eager {tmp_path}')
    values = [torch.tensor(1.5), 2.0, torch.tensor([2.5], dtype=torch.float64), torch.tensor(3, dtype=torch.bfloat16)]
    for hub in (lazy, eager):
        for value in values:
            hub.update_scalar('a', value, count=2)
            hub.update_scalar('b', torch.tensor(7), resumed=False)
    assert lazy._log_scalars['a'].data[0].tolist() == [1.5, 2.0]  # a number of Python's is never behind a tensor
    for name in ('b', 'a'):
        theirs = eager.get_scalar(name)
        assert [part.tolist() for part in lazy.get_scalar(name).data] == [part.tolist() for part in theirs.data]
    assert list(lazy.state_dict()['log_scalars']) == ['a']
    with pytest.raises(KeyError, match='c is not found'):
        lazy.get_scalar('c')
    with pytest.raises(AssertionError):
        lazy.update_scalar('a', torch.ones(2))


def test_keep_norm__clips_as_before(tmp_path):
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    hub, kept = make_lazy(f'norm {tmp_path}'), []
    for parameter in parameters:
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=1.0))
        if not kept:
            keep_norm(wrapper, hub)
        wrapper.update_params((parameter * 2).sum())
        kept.append(parameter.detach())
    assert torch.equal(*kept)
    assert hub.get_scalar('train/grad_norm').current() == pytest.approx(12**0.5)
