"""Fine-tuning sweeps over the number of frozen blocks or the learning rate.

runs = frozen_block_sweep(mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits'), [0, 2, 4])
accuracies = {blocks: finetune(cfg) for blocks, cfg in runs.items()}
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.runner import Runner


def frozen_block_sweep(cfg: Config, blocks: Sequence[int]) -> dict[int, Config]:
    """One fine-tuning config per number of frozen blocks, each given once; embeddings are frozen with the first block."""
    check_distinct('blocks', blocks)
    if min(blocks) < 0:
        raise ValueError(f'blocks={list(blocks)}: use numbers from 0.')
    runs = {}
    for count in blocks:
        run = runs[count] = with_work_dir(cfg, f'frozen_{count:02d}')
        if count:
            run.custom_hooks = [*(run.get('custom_hooks') or []), dict(type='mkd_plugin.FreezeHook', blocks=count)]
            run.find_unused_parameters = True  # for DDP, which is set up before blocks are frozen
    return runs


def learning_rate_sweep(cfg: Config, rates: Sequence[float]) -> dict[float, Config]:
    """One fine-tuning config per peak learning rate, each given once; layer-wise decay and schedule scale with it."""
    check_distinct('rates', rates)
    if min(rates) <= 0:
        raise ValueError(f'rates={list(rates)}: learning rates must be positive.')
    runs = {}
    for rate in rates:
        runs[rate] = with_work_dir(cfg, f'lr_{rate:g}')
        runs[rate].optim_wrapper.optimizer.lr = rate
    return runs


def finetune(cfg: Config) -> float:
    """Run a fine-tuning config that validates; return its last top-1 accuracy on the validation images, in per cent."""
    if cfg.get('val_evaluator') is None:
        raise ValueError('The config has no val_evaluator, so there is no accuracy to read. Add one, with topk=1.')
    cfg = copy.deepcopy(cfg)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    runner = Runner.from_cfg(cfg)
    runner.train()
    return float(runner.message_hub.get_scalar('val/accuracy/top1').current())


def with_work_dir(cfg: Config, name: str) -> Config:
    """Copy a config, with a sub-folder of its work dir."""
    run = copy.deepcopy(cfg)
    run.work_dir = f'{cfg.get("work_dir") or "work_dirs/sweep"}/{name}'
    return run


def check_distinct(option: str, values: Sequence[float]) -> None:
    """Raise ValueError for no values or repeated values."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f'{option}={list(values)}: give at least one value, without repetition.')
