"""Whether the heads of a config are for as many classes as its data have."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mkd_plugin.preflight.strategies import check_strategy, fit_strategy_to_cpu
from mkd_plugin.utils.configs import get_ablation

# they tell other things apart than the data's classes: objects from background, stuff
OTHERS = ('rpn_head', 'semantic_head')


def check_classes(cfg: Config) -> None:
    """Refuse a config whose heads and data do not have the same number of classes, before anything is built.

    mmdet would train on without a word, mmseg until a label is met that its head does not have. Data whose classes are only
    known from their files, and models without heads, are let through.

    Raises:
        ValueError: The numbers differ; both are named, and where they are said.
    """
    heads = {
        where: number
        for key, part in (cfg.get('model') or {}).items()
        if key.endswith('head') and key not in OTHERS
        for where, number in numbers_of(part, f'model.{key}')
    }
    if not heads:
        return
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in datasets_of((cfg.get(loader) or {}).get('dataset')):
            classes = classes_of(dataset, cfg.get('default_scope') or 'mmengine')
            wrong = [f'{where}.num_classes={number}' for where, number in heads.items() if number != len(classes or ())]
            if classes is not None and wrong:
                raise ValueError(
                    f'{", ".join(wrong)}: but the {dataset["type"]} of {loader} has {len(classes)} classes, '
                    f'{", ".join(map(str, classes[:3]))}{", …" if len(classes) > 3 else ""}. Let the heads have as many, or '
                    "name the data's own with metainfo=dict(classes=(…)) in every dataset."
                )


def numbers_of(node: Any, where: str) -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` in a head, with its place."""
    if isinstance(node, (list, tuple)):
        for index, part in enumerate(node):
            yield from numbers_of(part, f'{where}.{index}')
    elif isinstance(node, dict):
        if isinstance(node.get('num_classes'), int):
            yield where, node['num_classes']
        for key, part in node.items():
            if key not in OTHERS:
                yield from numbers_of(part, f'{where}.{key}')


def datasets_of(node: Any) -> Iterator[dict[str, Any]]:
    """A dataset's config, or those that it wraps."""
    if not isinstance(node, dict):
        return
    inner = [*(node.get('datasets') or []), *([node['dataset']] if 'dataset' in node else [])]
    for part in inner:
        yield from datasets_of(part)
    if not inner:
        yield node


def classes_of(dataset: dict[str, Any], scope: str) -> tuple[Any, ...] | None:
    """What a dataset tells apart: its config's ``metainfo``, else its class's; None if neither says."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset['type']
        if isinstance(kind, str):
            with DATASETS.switch_scope_and_registry(scope) as registry:
                kind = registry.get(kind)
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    return tuple(classes) if isinstance(classes, (list, tuple)) else None


LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of train.py and test.py, named as in the hosts' own tools."""
    parser.add_argument('config', help='a config file, or METHOD:ROW for an ablation')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; work_dirs/<config> by default')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='changes of the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch, which mim uses, passes the rank on; torchrun sets the variable instead
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(name: str, options: dict[str, Any]) -> Config:
    """A config, or METHOD:ROW of an ablation, with the changes of ``--cfg-options``.

    Raises:
        ValueError: There is no such config file or ablation row.
    """
    method, _, row = name.partition(':')
    if not row and not Path(name).is_file():
        raise ValueError(f'{name}: there is no such config file. Give a path, or METHOD:ROW for an ablation.')
    cfg = get_ablation(method, row) if row else Config.fromfile(name)
    data_root = cfg.get('data_root')
    cfg.merge_from_dict(options)
    if 'data_root' in options:
        move_data_root(cfg, data_root)
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's changes, for this machine.

    Raises:
        ValueError: There is no such config file or ablation row, its strategy cannot be used, or its heads are not for the
            classes of its data.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    method, _, row = args.config.partition(':')
    name = f'{method}_{row}' if row else Path(args.config).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    check_strategy(cfg)
    check_classes(cfg)
    fit_to_device(cfg)
    return cfg


def apply_training_options(cfg: Config, args: argparse.Namespace) -> None:
    """Bring the options that only training has into the config.

    Raises:
        ValueError: --auto-scale-lr although the config does not say which batch size its rate is for.
    """
    if args.amp:
        # mmdet hands boxes to RoIAlign in the type of the features, and bfloat16 moves a corner by up to four pixels
        coarse = 'roi_head' in cfg.get('model', {})
        precision = dict(dtype='float16', loss_scale='dynamic') if coarse else dict(dtype='bfloat16', loss_scale=1.0)
        cfg.optim_wrapper.update(type='AmpOptimWrapper', **precision)
        fit_to_device(cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr=dict(base_batch_size=…) to scale from.'
            )
        # mmengine scales by images a step and process, and forgets that accumulated steps are one update
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get('accumulative_counts', 1)
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume


def move_data_root(cfg: Config, before: str | None) -> None:
    """Let ``data_root`` of a command line reach the datasets, and the annotations of the evaluators.

    A config file uses the variable while it is read; what is merged later would change nothing but the variable itself.
    """

    def move(node: Any) -> None:
        if isinstance(node, dict):
            if 'data_root' in node and before in (None, node['data_root']):
                node['data_root'] = cfg.data_root
            for value in node.values():
                move(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                move(value)

    for loader in LOADERS:
        move(cfg.get(loader))
    for name in ('val_evaluator', 'test_evaluator'):
        evaluators = cfg.get(name) or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            listed = evaluator.get('ann_file')
            if before and listed and listed.startswith(before):
                evaluator['ann_file'] = os.path.join(cfg.data_root, listed.removeprefix(before).lstrip('/'))


def has_accelerator() -> bool:
    """Whether mmengine would train on something else than the CPU."""
    from mmengine.device import get_device

    return get_device() != 'cpu'


def has_bfloat16() -> bool:
    """Whether the accelerator computes in bfloat16 itself; that of an older GPU is emulated, and slow."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def fit_to_device(cfg: Config) -> None:
    """Change what this machine cannot run: mixed precision, and on a CPU SyncBN and the number of a GPU that DDP is given."""
    wrapper = cfg.get('optim_wrapper') or {}
    mixed = wrapper.get('type') == 'AmpOptimWrapper'
    if has_accelerator():
        if mixed and wrapper.get('dtype') == 'bfloat16' and not has_bfloat16():
            wrapper.update(dtype='float16', loss_scale='dynamic')
            print_log('This GPU has no bfloat16: training in float16 with loss scaling.', level=logging.WARNING)
        return
    if mixed:
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper['type'] = 'OptimWrapper'
        print_log('There is no GPU: training in float32 instead of mixed precision.', level=logging.WARNING)
    if without_sync(cfg.get('model')):
        print_log('There is no GPU: BN instead of SyncBN, each process with its own statistics.', level=logging.WARNING)
    fit_strategy_to_cpu(cfg)
    if cfg.launcher != 'none' and cfg.get('model_wrapper_cfg') is None:
        unused = cfg.get('find_unused_parameters', False)
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False, find_unused_parameters=unused
        )


def without_sync(node: Any) -> bool:
    """Turn every SyncBN of a model's config into BN, which is what it computes in one process; True if there was any."""
    parts = list(node.values()) if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else []
    found = isinstance(node, dict) and node.get('type') == 'SyncBN'
    if found:
        node['type'] = 'BN'
    for part in parts:
        found |= without_sync(part)
    return found
