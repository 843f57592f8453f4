"""What of a config decides a run's result, and what of it differs between two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size

__all__ = ['changes_between', 'record_of']

DECIDES = (
    'model',
    'data_preprocessor',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'auto_scale_lr',
    'custom_hooks',
    'randomness',
)
# The order and augmentation of samples do not depend on how many processes load them.
IRRELEVANT = re.compile(
    r'train_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor|timeout)'
    r'|train_cfg\.(val_\w+|dynamic_intervals.*|fast_forward_on_resume)|.*\._scope_'
)


def record_of(cfg: Config) -> dict[str, str]:
    """The deciding values by their dotted names, as text: it is saved in checkpoints."""
    values = cfg.to_dict() if isinstance(cfg, Config) else dict(cfg)
    record = {'world_size': str(get_world_size())}
    for key in DECIDES:
        for name, value in leaves(key, values.get(key)):
            if not IRRELEVANT.fullmatch(name):
                record[name] = json.dumps(value, default=plain_name)
    return record


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value in a nested config, with its dotted name; None and what is not there are the same."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(f'{name}.{key}', part)
    elif isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        for number, part in enumerate(value):
            yield from leaves(f'{name}.{number}', part)
    elif value is not None:
        yield name, value


def plain_name(value: Any) -> str:
    """A class or function by its name; of another object only what it is, for its text may hold an address."""
    if hasattr(value, '__qualname__'):
        return f'{value.__module__}.{value.__qualname__}'
    return str(value) if type(value).__name__.startswith('Lazy') else type(value).__qualname__


def changes_between(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One line a difference."""
    absent = 'not there'
    return [
        f'{name}: {old.get(name, absent)} → {new.get(name, absent)}'
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
