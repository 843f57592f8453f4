"""Read a config for this machine: its name, the changes of the command line, what the device can run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from mkd_plugin.compat.hosts import explain_missing_host
from mkd_plugin.preflight.checks import (
    LOADERS,
    check_classes,
    check_hosts_of,
    check_kinds,
    check_strategy,
    parts_of,
    strategy_name,
)
from mkd_plugin.preflight.unread import check_data_root, check_keys, check_options, check_saving, data_roots
from mkd_plugin.utils.configs import change, get_ablation, get_config


def read_config(name: str, options: Mapping[str, Any]) -> Config:
    """Read a config file, a shipped config or ``METHOD:ROW`` of an ablation, and change it. Raises ValueError if that fails."""
    method, _, row = name.partition(':')
    try:
        cfg = get_ablation(method, row) if row else get_config(name)
    except ModuleNotFoundError as error:  # a base such as 'mmseg::…'
        message = explain_missing_host(str(error).split()[0].strip("'`"), f'the config {name}')
        if message is None:
            raise
        raise ValueError(message) from error
    check_options(cfg, options)
    if 'data_root' in options:
        move_data_root(cfg, options['data_root'])
    else:
        check_data_root(cfg)
    change(cfg, options)
    check_kinds(cfg)
    check_keys(cfg)
    return cfg


def load_config(
    name: str, *, work_dir: str | None = None, options: Mapping[str, Any] | None = None, launcher: str = 'none'
) -> Config:
    """Read a config as :func:`read_config` does, check it, and adapt it to this machine.

    ``work_dir`` is the config's own or ``work_dirs/<name>`` by default; ``launcher`` is mmengine's name of what started
    this process. Raises ValueError also if a host or strategy cannot be used, or heads and data have different classes.
    """
    cfg = read_config(name, options or {})
    cfg.launcher = launcher
    method, _, row = name.partition(':')
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{f"{method}_{row}" if row else Path(name).stem}'
    check_hosts_of(cfg, name)
    if cfg.get('compile'):
        raise ValueError(
            "compile: mmengine's option fails with hooks and wrappers that call the model's methods. Remove it, and add "
            "dict(type='mkd_plugin.CompileHook') to custom_hooks."
        )
    check_strategy(cfg)
    check_classes(cfg)
    fit_to_device(cfg)
    return cfg


def apply_training_options(
    cfg: Config, *, amp: bool = False, validate: bool = True, auto_scale_lr: bool = False, resume: str | None = None
) -> None:
    """Apply the options of ``mkd train``; ``resume`` is a checkpoint, or 'auto' for the newest of the work dir.

    Raises ValueError for ``auto_scale_lr`` if the config does not state the batch size of its learning rate, and for an
    interval of checkpoints that is none.
    """
    check_saving(cfg)
    if amp:
        # mmdet hands boxes to RoIAlign in the type of the features, and bfloat16 moves a corner by up to four pixels
        coarse = 'roi_head' in cfg.get('model', {})
        precision: dict[str, Any] = dict(dtype='float16', loss_scale='dynamic')
        if not coarse:  # without a scaler, which would search all gradients in every step
            precision = dict(dtype='bfloat16', loss_scale=dict(enabled=False))
        cfg.optim_wrapper.update(type='AmpOptimWrapper', **precision)
        fit_to_device(cfg)
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr: the config has no auto_scale_lr=dict(base_batch_size=…) to scale from.')
        # mmengine scales by the images of a step on all processes, and ignores accumulated steps
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get('accumulative_counts', 1)
        cfg.auto_scale_lr.enable = True
    if resume:
        cfg.resume, cfg.load_from = True, None if resume == 'auto' else resume


def move_data_root(cfg: Config, root: str) -> None:
    """Apply ``data_root`` of the command line to the datasets and to the annotation files of the evaluators.

    A config file uses the variable while it is read; what is merged later changes the variable alone. Datasets with another
    root than the variable's keep it, unless all have the same one. Raises ValueError if none has the root of the variable.
    """
    before, roots = cfg.get('data_root'), set(data_roots(cfg))
    if before is not None and before not in roots and len(roots) == 1:
        before = next(iter(roots))
    moved = 0
    for _, part in parts_of({name: cfg.get(name) for name in LOADERS}):
        if isinstance(part, dict) and 'data_root' in part and before in (None, part['data_root']):
            part['data_root'] = root
            moved += 1
    for name in ('val_evaluator', 'test_evaluator'):
        evaluators = cfg.get(name) or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            listed = evaluator.get('ann_file')
            if before and listed and listed.startswith(before):
                evaluator['ann_file'] = os.path.join(root, listed.removeprefix(before).lstrip('/'))
                moved += 1
    if not moved:
        theirs = f'theirs are {sorted(roots)}' if roots else 'none of them has a data_root'
        raise ValueError(
            f'data_root={root}: it reaches no dataset of the config, {theirs}. Set the option of each dataset, such as '
            'train_dataloader.dataset.data_root=…; `mkd print-config` shows them.'
        )


def has_accelerator() -> bool:
    """Whether mmengine would train on anything but the CPU."""
    return get_device() != 'cpu'


def has_bfloat16() -> bool:
    """Whether the accelerator has bfloat16 in hardware; older GPUs emulate it slowly."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def fit_to_device(cfg: Config) -> None:
    """Replace what this machine cannot run: mixed precision, SyncBN on a CPU, and DDP's GPU number on a CPU."""
    wrapper = cfg.get('optim_wrapper') or {}
    mixed = wrapper.get('type') == 'AmpOptimWrapper'
    if has_accelerator():
        if mixed and wrapper.get('dtype') == 'bfloat16' and not has_bfloat16():
            wrapper.update(dtype='float16', loss_scale='dynamic')
            print_log('This GPU has no bfloat16: training in float16 with loss scaling.', level=logging.WARNING)
        return
    for name in ('train_dataloader', 'val_dataloader'):
        (cfg.get(name) or {}).pop('pin_memory', None)  # torch warns of it
    if mixed:
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper['type'] = 'OptimWrapper'
        print_log('There is no GPU: training in float32 instead of mixed precision.', level=logging.WARNING)
    synced = [part for _, part in parts_of(cfg.get('model')) if isinstance(part, dict) and part.get('type') == 'SyncBN']
    for part in synced:
        part['type'] = 'BN'  # its equal in one process
    if synced:
        print_log('There is no GPU: BN replaces SyncBN; each process has its own statistics.', level=logging.WARNING)
    fit_strategy_to_cpu(cfg)
    if cfg.launcher != 'none' and cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(ddp_options(cfg), device_ids=None)


def ddp_options(cfg: Config) -> dict[str, Any]:
    """Return the options of DDP that mmengine would take from a config."""
    unused = cfg.get('find_unused_parameters', False)
    return dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)


def fit_strategy_to_cpu(cfg: Config) -> None:
    """Keep DDP's model on the CPU; mmengine's strategy passes it the number of a GPU."""
    strategy = cfg.get('strategy')
    if strategy is None and cfg.get('launcher', 'none') != 'none' and 'runner_type' in cfg:
        strategy = cfg.strategy = dict(type='DDPStrategy')  # mmengine's default
    if strategy is None or strategy_name(strategy) != 'DDPStrategy':
        return
    wrapper = {**ddp_options(cfg), **(strategy.get('model_wrapper') or {}), 'device_ids': None}
    cfg.strategy = {**strategy, 'model_wrapper': wrapper}
