"""Translate errors of building from a config into messages: the place in the config, what was given, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from traceback import extract_tb, walk_tb
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from mkd_plugin.preflight.checks import parts_of, type_name

BUILDERS = {'build_from_cfg': 'mmengine.registry.build_functions', 'build': 'mkd_plugin.registry'}
LOOPS = {'run', 'run_epoch', 'run_iter'}  # of a host's loop: what fails there is no longer building


@contextmanager
def config_mistakes(cfg: Config) -> Iterator[None]:
    """Raise ValueError, with one message, for what a host raises while something is built from ``cfg``.

    Errors in a training step and the bugs of this package pass unchanged. So do OSErrors, which name their file.
    """
    try:
        yield
    except Exception as error:
        message = explain(error, cfg)
        if message is None:
            raise
        raise ValueError(message) from error


def explain(error: Exception, cfg: Config) -> str | None:
    """Describe an error of building as a mistake in the config; None if it is not one."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    ours = module_of(frames[-1]).partition('.')[0] in ('mkd_plugin', 'mkd_cli')
    if isinstance(error, (OSError, MemoryError)) or (ours and not isinstance(error, ValueError)):
        return None
    if any(frame.f_code.co_name in LOOPS and not module_of(frame).startswith('mkd_cli') for frame in frames):
        return None
    building = [frame for frame in frames if BUILDERS.get(frame.f_code.co_name) == module_of(frame)]
    if not building:
        return str(error) if ours else f'The config cannot be used: {named(error)}'
    values = building[-1].f_locals
    node, registry = values['cfg'], values.get('registry')
    where = place_of(node, cfg) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping) and values.get('obj_cls', node) is None and isinstance(registry, Registry):
        return unknown_type(where or registry.name, node['type'], registry)
    if ours:
        return str(error) if where is None or where in str(error) else f'{error} (In the config: {where}.)'
    if not isinstance(node, Mapping) or 'type' not in node:
        return f"{place_above(building, cfg)}{node!r} was given where a dict with a 'type' is needed."
    return f'{where or "The config"}: {type_name(node["type"])} cannot be built: {named(error)}'


def module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get('__name__', ''))


def named(error: Exception) -> str:
    """Return an error's text, with its type or the line that raised it where the text alone says little."""
    if isinstance(error, AssertionError) and not str(error):
        return extract_tb(error.__traceback__)[-1].line or 'an assertion failed'
    return str(error) if isinstance(error, (ValueError, AssertionError)) else f'{type(error).__name__}: {error}'


def place_of(node: Mapping[str, Any], cfg: Config) -> str | None:
    """Return the dotted key of a part of a config; None if there is no such part."""
    kind = type_name(node.get('type')).rpartition('.')[2]
    wanted = {key: value for key, value in node.items() if key != 'type' and isinstance(value, (str, int, float))}
    wanted.pop('_scope_', None)
    for where, part in parts_of(dict(cfg)):
        same = isinstance(part, dict) and type_name(part.get('type')).rpartition('.')[2] == kind
        if same and all(part.get(key) == value for key, value in wanted.items()):
            return where
    return None


def place_above(building: list[FrameType], cfg: Config) -> str:
    """Return, as the beginning of a sentence, the part of the config that was built when a part of it could not be."""
    for frame in reversed(building[:-1]):
        node = frame.f_locals['cfg']
        if isinstance(node, Mapping) and (where := place_of(node, cfg)):
            return f'{where}: '
    return ''


def unknown_type(where: str, name: Any, registry: Registry) -> str:
    """Describe a type that no registry has, with the nearest names."""
    root = registry
    while root.parent is not None:
        root = root.parent
    known: dict[str, str] = {}
    for part in (registry, *(child for scope, child in root.children.items() if scope == 'mkd_plugin'), root):
        part.import_from_location()
        for key in part.module_dict:
            known.setdefault(key, f'mkd_plugin.{key}' if part.scope == 'mkd_plugin' else key)
    close = nearest(str(name).rpartition('.')[2], known)
    hint = f' Did you mean {" or ".join(repr(known[key]) for key in close)}?' if close else ''
    return (
        f'{where}: there is no {registry.name} {name!r}.{hint} A class of another package is found as PACKAGE.CLASS, one of '
        'your own after custom_imports=dict(imports=[MODULE]).'
    )


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are close to one, whatever their case."""
    by_case = {key.lower(): key for key in known}
    return [by_case[match] for match in get_close_matches(name.lower(), by_case, n=3, cutoff=0.6)]
