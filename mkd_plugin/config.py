"""Finds the shipped configs, in an installation and in a checkout alike."""

from difflib import get_close_matches
from pathlib import Path

from mmengine.config import Config

_PACKAGE = Path(__file__).resolve().parent


def config_root() -> Path:
    """The folder of the configs: `mkd_plugin/.mim/configs` if installed, else `configs` of the checkout."""
    installed = _PACKAGE / '.mim' / 'configs'
    return installed if installed.is_dir() else _PACKAGE.parent / 'configs'


def get_config(name: str) -> Config:
    """Read a shipped config.

    Args:
        name: Its path below `config_root()`, with or without `.py`:
            `'dbot/dbot_vit-base-p16_2x800e_in1k'`.

    Raises:
        ValueError: There is no such config; the message lists the closest names.
    """
    root = config_root()
    wanted = name.removesuffix('.py')
    known = {path.relative_to(root).with_suffix('').as_posix(): path for path in sorted(root.rglob('*.py'))}
    if wanted not in known:
        close = get_close_matches(wanted, known, n=5, cutoff=0.4)
        hint = f'the closest are {", ".join(close)}' if close else 'no name is close to it'
        raise ValueError(f'no config is named {wanted!r} below {root}: {hint}')
    return Config.fromfile(known[wanted])
