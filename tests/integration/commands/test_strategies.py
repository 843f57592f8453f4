"""mmengine's strategies on two gloo processes: the same training as without them, also after a breakpoint and a resume."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from helpers import ranks
from mmengine.config import Config

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.datasets import write_digits
from mkd_plugin.engine import ShardedStrategy, sharding
from mkd_plugin.engine.checkpoints import newest_checkpoint
from mkd_plugin.engine.shard_files import check_pieces
from mkd_plugin.preflight.checks import check_strategy
from mkd_plugin.preflight.config import fit_strategy_to_cpu, load_config

differences = importlib.import_module('kill_resume').differences

FSDP = ('strategies/fsdp.py',)
DDP = "runner_type, strategy = 'mkd_plugin.StrategyRunner', dict(type='DDPStrategy')"
ALONE = "runner_type, strategy = 'mkd_plugin.StrategyRunner', dict(type='SingleDeviceStrategy')"
# Promotions, a momentum teacher and a tap that stops inside a block, with the same batches for any number of processes.
SAME = """
train_cfg = dict(max_epochs=2)
model['type'] = 'SameOnAnyRank'
model['backbone']['drop_path_rate'] = 0.0
model['teachers'] = dict(ema=dict(type='MomentumTeacher', momentum=0.9))
model['objectives']['relation'] = dict(
    teacher='ema', tap='relation:-1', student='relation:-1', loss=dict(type='SmoothL1Loss'), region='visible')
custom_hooks += [dict(type='Shares')]
train_dataloader['batch_size'] = 4 // {}
optim_wrapper = dict(clip_grad=dict(max_norm=0.5))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=4, end=4, convert_to_iter_based=True)]  # again in each stage
"""
BY_TIME = """
custom_hooks += [dict(type='SavesOften')]
default_hooks['checkpoint'].update(minutes=1e-4)
default_hooks['logger'] = dict(interval=2)
"""
WHOLE_TEACHERS = 'strategy = dict(shard_teachers=False)'
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


@pytest.mark.parametrize(
    'processes, more',
    [
        (2, BY_TIME),
        pytest.param(2, WHOLE_TEACHERS, marks=pytest.mark.slow),
        pytest.param(4, '', marks=pytest.mark.slow),
    ],
    ids=['two', 'two with whole teachers', 'four'],
)
def test_fsdp__is_one_process(run, processes, more):
    """Weights, teachers and moments over a promotion, under the same names."""
    alone, sharded = run(more=SAME.format(1), processes=1), run(FSDP, SAME.format(processes) + more, processes)
    for name in ('stage_1.pth', 'stage_2.pth', 'epoch_2.pth'):
        one, many = (read_checkpoint(folder / name) for folder in (alone, sharded))
        assert one['state_dict'].keys() == many['state_dict'].keys()
        torch.testing.assert_close(dict(many['state_dict']), dict(one['state_dict']), rtol=0, atol=1e-6)
    assert one['state_dict']['teachers.boot.num_promotions'] == 1
    assert one['optimizer']['param_groups'] == many['optimizer']['param_groups']
    torch.testing.assert_close(many['optimizer']['state'], one['optimizer']['state'], rtol=0, atol=1e-6)
    if more == BY_TIME:  # written beside training, and deleted as a folder
        assert (sharded / 'recent_1').exists() and not (sharded / 'recent.pth').exists()
    assert not list(sharded.glob('*.tmp'))


def test_fsdp__resumes_on_another_number_of_processes(run, tmp_path):
    """From the folder of two processes' shares, with one; without a piece it is refused by name."""
    more = (
        SAME.format(2)
        + "custom_hooks += [dict(type='SignalAt', step=9, name='SIGTERM', ranks=[1], priority='VERY_HIGH')]"
    )
    folder = run(FSDP, more, codes=(85,))
    piece = folder / 'preempted.pth' / '__1_0.distcp'
    away = piece.rename(tmp_path / 'piece')
    with pytest.raises(ValueError, match='__1_0.distcp is missing. Copy the whole folder again'):
        check_pieces(piece.parent)
    warnings = []
    assert newest_checkpoint(folder, warn=warnings.append) == str(folder / 'epoch_1.pth')
    assert 'preempted.pth is passed over' in warnings[0] and '__1_0.distcp is missing' in warnings[0]
    away.rename(piece)
    digits = Path(Config.fromfile(folder / 'config.py').train_dataloader.dataset.data_root)
    changed = SAME.format(1) + "default_hooks['exact_resume'] = dict(allow_changed_config=True)"
    config = ranks.write_config(folder, digits, bases=FSDP, more=changed)
    found = ranks.train(config, folder, '--resume', '--launcher', 'pytorch', ranks=1)
    assert found == [0], (folder / 'rank_0.txt').read_text()[-3000:]
    one, again = (read_checkpoint(path / 'epoch_2.pth') for path in (run(more=SAME.format(1), processes=1), folder))
    torch.testing.assert_close(dict(again['state_dict']), dict(one['state_dict']), rtol=0, atol=1e-6)
    torch.testing.assert_close(again['optimizer']['state'], one['optimizer']['state'], rtol=0, atol=1e-6)


def test_fsdp__every_weight_teacher_and_moment_is_shared_out(run):
    """Or the test above would compare DDP with itself."""
    shares = [json.loads(path.read_text()) for path in run(FSDP, SAME.format(2) + BY_TIME).glob('share_*.json')]
    weights = read_checkpoint(run(FSDP, SAME.format(2) + BY_TIME) / 'epoch_2.pth')['state_dict']
    trained = {name for name in shares[0] if name.startswith(('backbone.', 'objectives.'))}
    assert {name.removeprefix('backbone.') for name in trained if name.startswith('backbone.')} == {
        name.removeprefix('teachers.ema.network.') for name in shares[0] if name.startswith('teachers.ema.')
    }
    for name in shares[0].keys() - {'moments'}:
        assert shares[0][name] + shares[1][name] == weights[name].numel()
        assert shares[1][name] <= shares[0][name] < weights[name].numel() or len(weights[name]) == 1
    assert sum(share['moments'] for share in shares) == 2 * sum(weights[name].numel() for name in trained)


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


def test_sharded_strategy__refuses_an_old_torch_and_an_unknown_type(monkeypatch):
    with pytest.raises(ValueError, match="param_dtype='int8': use one of .None, 'bfloat16'"):
        ShardedStrategy(param_dtype='int8')
    monkeypatch.setattr(sharding, 'fully_shard', None)
    with pytest.raises(ValueError, match='needs torch >= 2.6, and this is .* to train with DDP'):
        ShardedStrategy()


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
