"""Changes of mmengine and of Python's import system; :func:`mkd_plugin.compat.install` makes them all.

None of them imports a host beside mmengine, and none changes anything where it is not needed.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import mmengine.logging
from mmengine.config import utils as config_utils
from mmengine.logging import MMLogger

from mkd_plugin.compat.hosts import HOSTS

STAND_IN = Path(__file__).parent / 'ops' / 'ext.py'

# How the records begin that a log file gets and the terminal does not: environment, config, order of hooks, one line for
# each parameter, and warnings of mmengine about its own code.
SETUP = (
    '\n------',
    'Config:\n',
    'Hooks will be executed in the following order:',
    'Distributed training is not used, all SyncBatchNorm',
    'paramwise_options -- ',
    'Could not import OneDL',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
)


class OpsFinder(MetaPathFinder):
    """Find ``mmcv._ext`` in :mod:`mkd_plugin.compat.ops.ext`; as the last finder, it gives way to the real one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the stand-in for ``mmcv._ext``, None for anything else; nothing is imported."""
        return spec_from_file_location(fullname, STAND_IN) if fullname == 'mmcv._ext' else None


def serve_missing_ops() -> None:
    """Make ``mmcv.ops``, and so mmdet and mmseg, importable where mmcv was installed without compiled ops."""
    if not any(isinstance(finder, OpsFinder) for finder in sys.meta_path):
        sys.meta_path.append(OpsFinder())


def resolve_mmseg_bases() -> None:
    """Let a config inherit ``mmseg::…`` where onedl's distribution provides mmseg.

    mmengine asks for upstream's distribution, and refuses the base without it. Under the module's own name it does not ask.
    """
    mmseg = next(host for host in HOSTS if host.module == 'mmseg')
    if mmseg.onedl in mmseg.installed():
        config_utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


class TerminalFilter(logging.Filter):
    """Drop records of the set-up from the terminal, if the logger writes them to a file."""

    def __init__(self, logger: MMLogger) -> None:
        super().__init__()
        self.logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        return self.logger.log_file is None or not record.getMessage().startswith(SETUP)


def shorten_terminal_log() -> None:
    """Keep the hundreds of lines before the first step in the log file alone, for every logger of mmengine made later."""
    original = MMLogger.__init__
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def init(self: MMLogger, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for handler in self.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(TerminalFilter(self))

    MMLogger.__init__ = init


def log_debug_messages() -> None:
    """Let the log file have what the hosts would print as debug messages, such as 'Could not import OneDL'.

    mmengine's ``print_log`` prints a message of any level if it is given no logger.
    """
    original = mmengine.logging.print_log
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def print_log(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level >= logging.INFO:
            original(msg, logger, level)
        elif MMLogger._instance_dict and MMLogger.get_current_instance().log_file is not None:
            MMLogger.get_current_instance().info(msg)

    mmengine.logging.print_log = print_log
