"""Refuse options that do nothing: keys that nothing reads, and values that reach nothing.

mmengine takes a config of any keys. A Python config holds variables of its author beside the options, so a key of a file is
refused if it resembles an option; on the command line, where variables come too late, every key must be an option.
"""

from __future__ import annotations

import ast
import inspect
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner

from mkd_plugin.compat.paramwise import did_you_mean
from mkd_plugin.preflight.checks import LOADERS, parts_of

# What the runners, and the tools of the hosts and of this package, read from a config beside the runners' arguments.
READ_ELSEWHERE = {
    'activation_checkpointing', 'custom_imports', 'efficient_conv_bn_eval', 'find_unused_parameters',
    'init_weights_for_test_or_val', 'model_wrapper_cfg', 'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip
RUNNERS = (Runner.__init__, FlexibleRunner.__init__)
READ = {name for init in RUNNERS for name in inspect.signature(init).parameters} - {'self', 'cfg'} | READ_ELSEWHERE

# Variables of the hosts' configs that resemble an option: mmseg's bisenetv2_fcn_4xb4-ohem has `models`.
VARIABLES = {'models', 'test_pipeline'}

# Parts that mmengine reads key by key; all others are arguments of a class, which refuses unknown ones itself.
PARTS = {
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
}
DEFAULT_HOOKS = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Raise ValueError for ``--cfg-options`` that nothing would read; ``cfg`` is the config without them."""
    for option, value in options.items():
        first, *_ = path = option.split('.')
        if first not in READ | {'data_root'}:
            known = ' It is a variable, which had its effect when the file was read: set what was made of it.'
            raise ValueError(
                f'--cfg-options {option}={value}: nothing reads {first!r}.'
                f'{known if first in cfg else did_you_mean(first, READ)} `mkd print-config` shows the options.'
            )
        node: Any = cfg
        for part in path[:-1]:
            node = node.get(part) if isinstance(node, dict | Config) else None
        # a class refuses unknown arguments; of parts without a type, such as model.test_cfg, nothing does
        if isinstance(node, dict) and 'type' not in node and path[-1] not in node:
            near = resembling(path[-1], node)
            if near is not None:
                place = '.'.join([*path[:-1], near])
                raise ValueError(f'--cfg-options {option}={value}: the config has no such key. Did you mean {place!r}?')


def check_keys(cfg: Config) -> None:
    """Raise ValueError for misspelt keys of a config: of the top, and of the parts that mmengine reads key by key."""
    for key in sorted(set(cfg) - READ - VARIABLES):
        near = resembling(key, READ)
        if near is not None and len(re.findall(rf'\b{re.escape(key)}\b', cfg.text)) < 2:  # a variable is used somewhere
            raise ValueError(
                f'{key}: nothing reads this key of the config. Did you mean {near!r}? If it is a variable of yours, '
                'give it a name that is less like an option.'
            )
    for part, known in PARTS.items():
        for key in sorted(own_keys(cfg.get(part)) - known):
            raise ValueError(
                f'{part}.{key}: nothing reads this key.{did_you_mean(key, known)} {part} has {sorted(known)}.'
            )
    hooks = cfg.get('default_hooks') or {}
    for name, hook in hooks.items():
        if name not in DEFAULT_HOOKS if hook is None else isinstance(hook, dict) and 'type' not in hook:
            raise ValueError(
                f'default_hooks.{name}={hook}: a hook needs a type, and None removes only {sorted(DEFAULT_HOOKS)}.'
                f'{did_you_mean(name, (DEFAULT_HOOKS | set(hooks)) - {name})}'
            )
        near = resembling(name, DEFAULT_HOOKS - {name})
        if near is not None and name not in DEFAULT_HOOKS:
            raise ValueError(f'default_hooks.{name}: this adds a hook beside {near!r}. Did you mean {near!r}?')
    checkpoint = hooks.get('checkpoint') or {}
    if isinstance(checkpoint, dict) and checkpoint.get('type') in ('CheckpointHook', CheckpointHook):
        known = set(inspect.signature(CheckpointHook.__init__).parameters) - {'self', 'kwargs'}
        read = known | set(inspect.signature(Runner.save_checkpoint).parameters) | {'type', 'priority'}
        for key in sorted(own_keys(checkpoint) - read):  # mmengine would raise when the first checkpoint is due
            raise ValueError(f'default_hooks.checkpoint.{key}: nothing reads this key.{did_you_mean(key, known)}')


def check_saving(cfg: Config) -> None:
    """Raise ValueError for an interval of checkpoints that is neither a positive integer nor −1, mmengine's word for never;
    say so if a run will save nothing, or nothing before its end.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint', {'interval': 1})
    others = [str(entry.get('type')) for entry in cfg.get('custom_hooks') or [] if isinstance(entry, dict)]
    if not isinstance(hook, dict | None) or any(kind.endswith('CheckpointHook') for kind in others):
        return
    interval = -1 if hook is None else hook.get('interval', -1)
    if isinstance(interval, bool) or not isinstance(interval, int) or interval == 0 or interval < -1:
        raise ValueError(
            f'default_hooks.checkpoint.interval={interval!r}: give the number of epochs (of iterations with by_epoch=False) '
            'between two checkpoints, at least 1; or −1 to save at the end of the run only.'
        )
    if hook is None or (interval == -1 and not hook.get('save_last', True) and not hook.get('save_best')):
        print_log('This run saves no checkpoint at all (default_hooks.checkpoint).', level=logging.WARNING)
    elif interval == -1:
        print_log(
            'This run saves no checkpoint before its end (default_hooks.checkpoint.interval=-1): if it is stopped, it '
            'starts anew.',
            level=logging.WARNING,
        )


def check_data_root(cfg: Config) -> None:
    """Raise ValueError if a config sets ``data_root``, but its datasets have another, inherited one."""
    wanted, roots = cfg.get('data_root'), set(data_roots(cfg))
    if not isinstance(wanted, str) or len(roots) != 1 or any(root.startswith(wanted.rstrip('/')) for root in roots):
        return
    if not {'_base_', 'data_root'} <= assigned(cfg.filename):  # else it is the datasets' root that was changed
        return
    raise ValueError(
        f'data_root={wanted!r} reaches no dataset: theirs is {next(iter(roots))!r}, set before this line was read. Set it in '
        'the datasets (train_dataloader=dict(dataset=dict(data_root=data_root)), …), or on the command line: '
        f'--cfg-options data_root={wanted}.'
    )


def assigned(file: str | Path | None) -> set[str]:
    """Return the names that a config file itself sets, not its bases."""
    if file is None or not str(file).endswith('.py'):
        return set()
    statements = ast.parse(Path(file).read_text(encoding='utf-8')).body
    targets = [target for node in statements if isinstance(node, ast.Assign) for target in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def data_roots(cfg: Config) -> Iterator[str]:
    """Yield every ``data_root`` of the loaders, at any depth."""
    for option, root in parts_of({name: cfg.get(name) for name in LOADERS}):
        if option.endswith('.data_root') and isinstance(root, str):
            yield root


def resembling(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs from this one by a letter or two, or by their order; None if there is none."""
    names = sorted(known)
    same_letters = [other for other in names if sorted(other) == sorted(name)]
    near = same_letters or get_close_matches(name, names, n=1, cutoff=0.87)
    return near[0] if near else None


def own_keys(node: Any) -> set[str]:
    """Return the keys of a part of a config without mmengine's marks, such as '_scope_'."""
    return {key for key in node or {} if not key.startswith('_')} if isinstance(node, dict) else set()
