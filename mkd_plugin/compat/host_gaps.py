"""Closes two gaps between the hosts as they are installed: mmcv without compiled ops, and ``mmseg::`` bases under onedl.

``import mkd_plugin`` closes both. Neither imports a host, and neither does anything where there is no gap.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from mmengine.config import utils as config_utils

from mkd_plugin.compat.hosts import HOSTS

STAND_IN = Path(__file__).with_name('ops.py')


class OpsFinder(MetaPathFinder):
    """Finds ``mmcv._ext`` in :mod:`mkd_plugin.compat.ops`. It is asked only if no finder before it knows better."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The stand-in's place, if this is what is looked for; nothing is imported yet."""
        return spec_from_file_location(fullname, STAND_IN) if fullname == 'mmcv._ext' else None


def serve_missing_ops() -> None:
    """Let ``mmcv.ops``, and so mmdet and mmseg, be imported where mmcv has no compiled ops; real ones go before."""
    if not any(isinstance(finder, OpsFinder) for finder in sys.meta_path):
        sys.meta_path.append(OpsFinder())


def resolve_mmseg_bases() -> None:
    """Let a config inherit ``mmseg::…`` where onedl's distribution provides mmseg.

    mmengine asks for the distribution that upstream's mmseg has, and refuses the base if it is not there. Under the module's
    own name it asks for nothing.
    """
    mmseg = next(host for host in HOSTS if host.module == 'mmseg')
    if mmseg.onedl in mmseg.installed():
        config_utils.MODULE2PACKAGE['mmseg'] = 'mmseg'
