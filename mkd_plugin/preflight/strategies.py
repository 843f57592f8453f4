"""Which of mmengine's strategies run here, and with what."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

RUNNER = 'mkd_plugin.StrategyRunner'
SHARED = ('DDPStrategy', 'mkd_plugin.ShardedStrategy')  # need a process group
SUPPORTED = ('SingleDeviceStrategy', *SHARED)


def check_strategy(cfg: Config) -> None:
    """Refuse a strategy that would not train, or not as this package promises.

    Raises:
        ValueError: The runner knows no strategies, or is mmengine's own; the strategy is not one of ``SUPPORTED``, or
            needs several processes.
    """
    strategy, runner = cfg.get('strategy'), cfg.get('runner_type')
    if runner == 'FlexibleRunner':
        raise ValueError(
            'runner_type=FlexibleRunner: it resumes from damaged files and names the weights by their wrapper. Use '
            f'{RUNNER}, which has the same options.'
        )
    if strategy is None:
        return
    name = name_of(strategy)
    if runner is None:
        raise ValueError(
            f'strategy={name}: the ordinary Runner would ignore it. Add runner_type={RUNNER!r}, or the base '
            'configs/_base_/strategies/fsdp.py.'
        )
    if name not in SUPPORTED:
        raise ValueError(
            f'strategy={name} is not supported; there are {list(SUPPORTED)}. mmengine calls no hook for what DeepSpeed and '
            'ColossalAI save and load, so neither exact resume nor safe loading nor stages would hold, and its own '
            'FSDPStrategy cannot resume. To share out weights and moments: mkd_plugin.ShardedStrategy.'
        )
    if name in SHARED and cfg.get('launcher', 'none') == 'none':
        raise ValueError(f'strategy={name} needs a launcher: tools/dist_train.sh CONFIG GPUS, or tools/slurm_train.sh.')


def name_of(strategy: Any) -> str:
    """The strategy's name in a config; mmengine's own go without their package."""
    kind = strategy['type']
    name = kind if isinstance(kind, str) else f'{kind.__module__.partition(".")[0]}.{kind.__name__}'
    return name.removeprefix('mmengine.')


def fit_strategy_to_cpu(cfg: Config) -> None:
    """Let DDP leave the model on the CPU; mmengine's strategy gives it the number of a GPU."""
    strategy = cfg.get('strategy')
    if strategy is None and cfg.get('launcher', 'none') != 'none' and 'runner_type' in cfg:
        strategy = cfg.strategy = dict(type='DDPStrategy')  # what mmengine would take
    if strategy is None or name_of(strategy) != 'DDPStrategy':
        return
    unused = cfg.get('find_unused_parameters', False)
    defaults = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
    cfg.strategy = {
        **strategy,
        'model_wrapper': {**defaults, **(strategy.get('model_wrapper') or {}), 'device_ids': None},
    }
