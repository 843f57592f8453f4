"""Make mmengine's default constructor of optimisers refuse what it would ignore in ``paramwise_cfg``."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

# What DefaultOptimWrapperConstructor.add_params reads; mmengine has no list.
OPTIONS = (
    'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult', 'flat_decay_mult',
    'dcn_offset_lr_mult', 'bypass_duplicate',
)  # fmt: skip
# What an entry of custom_keys may have; all else goes to the optimiser's group, where hooks read it.
MULTIPLIERS = ('lr_mult', 'decay_mult')


def check_paramwise(options: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse unknown options and misspelt entries; warn about names that match no parameter.

    Recipes of the hosts name parts that only some networks have, so a name is refused only if it resembles a part of this one.

    Raises:
        ValueError: An option is unknown, ``custom_keys`` is no dict of dicts, or an entry resembles the name of a parameter or
            multiplier without being one.
    """
    for name in options:
        if name not in OPTIONS and not name.startswith('_'):  # '_scope_' and the like are marks of mmengine's
            raise ValueError(
                f'paramwise_cfg: nothing reads {name!r}.{did_you_mean(name, OPTIONS)} DefaultOptimWrapperConstructor has '
                f'{", ".join(OPTIONS)}.'
            )
    entries = options.get('custom_keys') or {}
    if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise ValueError(
            f'paramwise_cfg: custom_keys={entries!r}: give a dict for each name, such as backbone=dict(lr_mult=0.1).'
        )
    # mmengine looks for a key inside '<module>.<parameter>', which begins with a dot for parameters of the model itself
    names = [name if '.' in name else f'.{name}' for name, _ in model.named_parameters()]
    unmatched = [key for key in entries if not any(key in name for name in names)]
    for key in unmatched:
        near = resembling(key, names)
        if near is not None:
            raise ValueError(f'paramwise_cfg: custom_keys {key!r} matches no parameter. Did you mean {near!r}?')
    for key, entry in entries.items():
        for name in entry:
            close = get_close_matches(name, MULTIPLIERS, n=1, cutoff=0.75)
            if close and name not in MULTIPLIERS:
                raise ValueError(f'paramwise_cfg: custom_keys {key!r} has {name!r}. Did you mean {close[0]!r}?')
    if unmatched:
        print_log(
            f'paramwise_cfg: these custom_keys match no parameter and change nothing: {", ".join(unmatched)}',
            logger='current',
            level=logging.WARNING,
        )


def resembling(key: str, names: Iterable[str]) -> str | None:
    """Return the part of a name that a key resembles, of as many words as the key; None if only numbers differ."""
    length = key.strip('.').count('.') + 1
    words = [name.strip('.').split('.') for name in names]
    parts = {'.'.join(part[start : start + length]) for part in words for start in range(len(part) - length + 1)}
    near = get_close_matches(key.strip('.'), sorted(parts), n=1, cutoff=0.8)
    plain = [re.sub(r'\d+', '0', text) for text in (key.strip('.'), *near)]
    return near[0] if near and plain[0] != plain[1] else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest known name, or nothing if none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean {near[0]!r}?' if near else ''


def install_checks() -> None:
    """Check ``paramwise_cfg`` when mmengine's own constructor is called; those derived from it have options of their own."""
    original = DefaultOptimWrapperConstructor.__call__
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def call(self: DefaultOptimWrapperConstructor, model: nn.Module) -> OptimWrapper:
        if type(self) is DefaultOptimWrapperConstructor:
            check_paramwise(self.paramwise_cfg, getattr(model, 'module', model))
        wrapper: OptimWrapper = original(self, model)
        return wrapper

    DefaultOptimWrapperConstructor.__call__ = call
