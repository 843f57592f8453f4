"""Find and read the shipped configs, in an installation and in a checkout alike."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config, DictAction

SUFFIXES = ('.py', '.json', '.yml', '.yaml')
_PACKAGE = Path(__file__).resolve().parents[1]


def config_root() -> Path:
    """Return the folder of the configs: `mkd_plugin/.mim/configs` if installed, else `configs` of the checkout."""
    installed = _PACKAGE / '.mim' / 'configs'
    return installed if installed.is_dir() else _PACKAGE.parent / 'configs'


def find_config(name: str) -> Path:
    """Find a config by its path, or by its path below `config_root()`, with or without `.py`: `'dbot/dbot_digits'`.

    Raises:
        ValueError: There is no such config; the message names the nearest ones.
    """
    if Path(name).is_file():
        beside = Path(f'{name}.py')  # of an installation's empty file, by which `mim train mkd_plugin NAME` finds it
        return beside if beside.is_file() else Path(name)
    root, wanted = config_root(), name.removesuffix('.py').removeprefix('configs/')
    known = {path.relative_to(root).with_suffix('').as_posix(): path for path in sorted(root.rglob('*.py'))}
    if wanted in known:
        return known[wanted]
    close = get_close_matches(wanted, known, n=3, cutoff=0.4)
    hint = f'the nearest are {", ".join(close)}' if close else 'no name is close to it'
    raise ValueError(f'no config is named {name!r}, neither as a file nor below {root}: {hint}.')


def get_config(name: str) -> Config:
    """Read a shipped config, such as `'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k'`, or a config file.

    Raises:
        ValueError: There is no such config; the message names the nearest ones.
    """
    return read_file(find_config(name))


def ablations(method: str) -> dict[str, Any]:
    """Return the ablation rows of a method: name → dict(config, options, paper, source).

    Raises:
        ValueError: The method has none; the message lists those that do.
    """
    path = config_root() / method / 'ablations.yml'
    if not path.is_file():
        known = sorted(found.parent.name for found in config_root().glob('*/ablations.yml'))
        raise ValueError(f'no ablations for {method!r}: there are some for {known}')
    rows: dict[str, Any] = yaml.safe_load(path.read_text())['rows']
    return rows


def get_ablation(method: str, row: str) -> Config:
    """Return the config of one ablation row of a method (its folder below `config_root()`, such as `'dbot'`).

    Raises:
        ValueError: There is no such method or row; the message names the nearest one and lists all.
    """
    rows = ablations(method)
    if row not in rows:
        close = get_close_matches(row, rows, n=1)
        hint = f' Did you mean {close[0]!r}?' if close else ''
        raise ValueError(f'no ablation {row!r} of {method!r}.{hint} There are {sorted(rows)}.')
    cfg = get_config(rows[row]['config'])
    cfg.merge_from_dict(rows[row]['options'])
    return cfg


def read_file(path: Path) -> Config:
    """Read a config file.

    Raises:
        ValueError: It cannot be read as a config; the message has the line of the error.
        ModuleNotFoundError: The package of a base is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path} is no config: its name must end in {", ".join(SUFFIXES)}.')
    try:
        return Config.fromfile(path)
    except (ModuleNotFoundError, OSError):
        raise
    except Exception as error:  # a config runs as Python: anything can be raised
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f' in line {frame.lineno}' for frame in frames if not frame.filename]  # mmengine names no file
        text = str(error).splitlines()[0] if isinstance(error, ImportError) else error  # mmengine lists sys.path
        raise ValueError(
            f'{path} cannot be read as a config: {type(error).__name__}{"".join(lines[-1:])}: {text}'
        ) from error


def change(cfg: Config, options: Mapping[str, Any]) -> None:
    """Set values by dotted key.

    Raises:
        ValueError: A key leads through a value that has no keys, or to an entry that a list does not have.
    """
    for key, value in options.items():
        node, done = cfg, ''
        *above, last = key.split('.')
        if not all([*above, last]):
            raise ValueError(
                f"--cfg-options {key}={value}: '{key}' is no key. Give names joined by dots, as in model.type=…"
            )
        for part in above:
            if isinstance(node, (list, tuple)):
                node = entry_of(node, part, key, done)
            elif isinstance(node, (dict, Config)):
                node = node.get(part) if node.get(part) is not None else {}
            done = f'{done}.{part}' if done else part
            if not isinstance(node, (dict, list, tuple)):
                raise ValueError(f'--cfg-options {key}={value}: {done}={node!r} is a single value and has no {last!r}.')
        if isinstance(node, (list, tuple)):
            entry_of(node, last, key, done)
    try:
        cfg.merge_from_dict(dict(options))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f'--cfg-options: {error.args[0] if error.args else error}') from error


def entry_of(node: Sequence[Any], part: str, key: str, where: str) -> Any:
    """Return an entry of a list in a config. Raises ValueError if there is none."""
    if not part.isdecimal() or int(part) >= len(node):
        allowed = f'the numbers 0 to {len(node) - 1}' if node else 'none: it is empty'
        raise ValueError(
            f'--cfg-options {key}: {where} is a list and has no entry {part!r}. Its entries are {allowed}.'
        )
    return node[int(part)]


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` as mmengine's ``--cfg-options`` does.

    Raises:
        ValueError: There is no key or no ``=``, or a bracket is not closed.
    """
    wrong = [pair for pair in pairs if not pair.partition('=')[0] or '=' not in pair]
    if wrong:
        raise ValueError(f'{wrong[0]!r}: give options as KEY=VALUE.')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction, default={})
    try:
        options: dict[str, Any] = parser.parse_args(['--options', *pairs]).options if pairs else {}
    except (ValueError, AssertionError) as error:  # brackets that do not match
        raise ValueError(f'{" ".join(pairs)}: give options as KEY=VALUE, and close every bracket.') from error
    return options
