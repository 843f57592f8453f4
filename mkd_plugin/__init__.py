"""Masked knowledge distillation of vision transformers, as a plugin of the OpenMMLab packages.

Importing it checks the installed hosts, adapts them (`mkd_plugin.compat.install`) and registers every component with them;
mmdet and mmseg are not imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mkd_plugin.compat import install
from mkd_plugin.compat.hosts import check_hosts
from mkd_plugin.version import __version__

check_hosts()  # first: without a host the imports below fail with a less helpful message
install()

from mkd_plugin import registry  # noqa: E402
from mkd_plugin.utils.configs import get_ablation, get_config  # noqa: E402

if TYPE_CHECKING:
    from mkd_plugin.interop.student import load_student
    from mkd_plugin.pretraining.run import pretrain

__all__ = ['__version__', 'get_ablation', 'get_config', 'load_student', 'pretrain', 'registry']


LAZY = {'load_student': 'mkd_plugin.interop.student', 'pretrain': 'mkd_plugin.pretraining.run'}


def __getattr__(name: str) -> Any:
    """Import on first use what needs the models, which configs do not."""
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
