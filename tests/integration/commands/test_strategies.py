"""mmengine's strategies on two gloo processes: the same training as without them, also after a breakpoint and a resume."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from helpers import ranks
from mmengine.config import Config

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.datasets import write_digits
from mkd_plugin.engine import ShardedStrategy
from mkd_plugin.preflight.checks import check_strategy
from mkd_plugin.preflight.config import fit_strategy_to_cpu, load_config

differences = importlib.import_module('kill_resume').differences

FSDP = ('strategies/fsdp.py',)
DDP = "runner_type, strategy = 'mkd_plugin.StrategyRunner', dict(type='DDPStrategy')"
ALONE = "runner_type, strategy = 'mkd_plugin.StrategyRunner', dict(type='SingleDeviceStrategy')"
MOMENTUM = """
model['teachers'] = dict(boot=dict(_delete_=True, type='MomentumTeacher', momentum=0.9))
"""
PREEMPTED = "custom_hooks += [dict(type='SignalAt', step=9, name='SIGTERM', ranks=[1], priority='VERY_HIGH')]"


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Trains a variant once and gives its folder: bases, more of a config, number of processes → folder."""
    folder = tmp_path_factory.mktemp('runs')
    digits, done = write_digits(folder / 'digits'), {}

    def train(bases: tuple[str, ...] = (), more: str = '', processes: int = 2, codes: tuple[int, ...] = (0,)) -> Path:
        if (bases, more, processes) not in done:
            work_dir = folder / f'{len(done)}'
            work_dir.mkdir()
            config = ranks.write_config(work_dir, digits, bases=bases, more=more)
            for code in codes:
                found = ranks.train(config, work_dir, '--resume', ranks=processes)
                told = (work_dir / 'rank_0.txt').read_text()[-3000:]
                assert found == [code] * processes, told
            done[bases, more, processes] = work_dir
        return done[bases, more, processes]

    return train


@pytest.mark.slow
def test_strategy_runner__ddp_is_the_ordinary_runners_bit_for_bit(run):
    assert differences(run(), run(more=DDP)) == []


@pytest.mark.slow
def test_strategy_runner__one_process_is_the_ordinary_runners_bit_for_bit(run):
    assert differences(run(processes=1), run(more=ALONE, processes=1)) == []


@pytest.mark.slow
@pytest.mark.parametrize('more', ['', MOMENTUM], ids=['stages', 'momentum'])
def test_fsdp__is_ddp(run, more):
    """The same names, and the same weights but for the order of summation, which AdamW's first steps enlarge."""
    for name in ('stage_1.pth', 'stage_2.pth') if not more else ('epoch_4.pth',):
        ddp, fsdp = (read_checkpoint(folder / name)['state_dict'] for folder in (run(more=more), run(FSDP, more)))
        assert ddp.keys() == fsdp.keys()
        assert any(key.startswith('teachers.boot.') for key in ddp)
        for key, value in ddp.items():
            torch.testing.assert_close(fsdp[key], value, rtol=0, atol=1e-3, msg=lambda text, key=key: f'{key}: {text}')


@pytest.mark.slow
def test_fsdp__weights_are_shared_out(run):
    """Or the test above would compare DDP with itself."""
    probe = "custom_hooks += [dict(type='Shares')]"
    assert sum(int(path.read_text()) for path in run(FSDP, probe).glob('share_*')) == sum(
        value.numel()
        for key, value in read_checkpoint(run(FSDP, probe) / 'stage_2.pth')['state_dict'].items()
        if not key.startswith(('teachers.', 'data_preprocessor')) and not key.endswith('pos_embed')
    )


@pytest.mark.slow
def test_fsdp__decays_what_ddp_decays(run):
    """Every share is 1-D; what is 1-D as a whole has no weight decay."""
    probe = "custom_hooks += [dict(type='Decays')]"
    ddp, fsdp = ((run(bases, probe) / 'decays_0').read_text() for bases in ((), FSDP))
    assert ddp == fsdp
    assert '0.05' in ddp and '0.0,' in ddp


@pytest.mark.parametrize('bases', [pytest.param((), marks=pytest.mark.slow), FSDP], ids=['ddp', 'fsdp'])
def test_preempted__and_resumed_amid_an_epoch_is_the_whole_run_bit_for_bit(run, bases):
    assert differences(run(bases), run(bases, PREEMPTED, codes=(85, 0))) == []


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(strategy=dict(type='mkd_plugin.ShardedStrategy')),
            'the ordinary Runner would ignore it. Add runner_type',
        ),
        (dict(runner_type='FlexibleRunner'), 'Use mkd_plugin.StrategyRunner'),
        (
            dict(strategy=dict(type='DeepSpeedStrategy'), runner_type='x'),
            'DeepSpeedStrategy is not supported; there are',
        ),
        (
            dict(strategy=dict(type='mmengine.FSDPStrategy'), runner_type='x'),
            'FSDPStrategy is not supported; there are',
        ),
        (dict(strategy=dict(type='DDPStrategy'), runner_type='x'), 'needs a launcher: tools/dist_train.sh'),
        (dict(strategy=dict(type=ShardedStrategy), runner_type='x'), 'ShardedStrategy needs a launcher'),
    ],
)
def test_check_strategy__refuses_before_anything_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        check_strategy(Config(options))


def test_check_strategy__every_tool_asks(tmp_path):
    (tmp_path / 'config.py').write_text("strategy = dict(type='DeepSpeedStrategy')")
    with pytest.raises(ValueError, match='the ordinary Runner would ignore it'):
        load_config(str(tmp_path / 'config.py'))


def test_sharded_strategy__refuses_an_unknown_sharding():
    with pytest.raises(ValueError, match="sharding='NO_SHARD': it must be one of .'FULL_SHARD'"):
        ShardedStrategy(sharding='NO_SHARD')


def test_fit_strategy_to_cpu__keeps_what_the_config_says():
    wrapper = dict(bucket_cap_mb=5)
    cfg = Config(dict(runner_type='x', launcher='pytorch', strategy=dict(type='DDPStrategy', model_wrapper=wrapper)))
    fit_strategy_to_cpu(cfg)
    assert cfg.strategy.model_wrapper.device_ids is None and cfg.strategy.model_wrapper.bucket_cap_mb == 5
    cfg = Config(dict(runner_type='x', launcher='pytorch', find_unused_parameters=True))
    fit_strategy_to_cpu(cfg)
    assert cfg.strategy.type == 'DDPStrategy' and cfg.strategy.model_wrapper.find_unused_parameters
    cfg = Config(dict(launcher='pytorch'))
    fit_strategy_to_cpu(cfg)
    assert 'strategy' not in cfg
