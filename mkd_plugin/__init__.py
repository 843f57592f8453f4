"""Masked knowledge distillation of vision transformers, as a plugin of the OpenMMLab packages.

Importing it checks the installed hosts and registers every part with them; mmdet and mmseg are not imported.
"""

from typing import TYPE_CHECKING, Any

from mkd_plugin.compat.hosts import check_hosts
from mkd_plugin.version import __version__

check_hosts()  # first: the imports below fail with less helpful words

from mkd_plugin import registry  # noqa: E402
from mkd_plugin.compat.host_gaps import resolve_mmseg_bases, serve_missing_ops  # noqa: E402
from mkd_plugin.compat.loaders import install_safe_loader  # noqa: E402
from mkd_plugin.utils.configs import get_ablation, get_config  # noqa: E402

if TYPE_CHECKING:
    from mkd_plugin.interop.student import load_student

__all__ = ['__version__', 'get_ablation', 'get_config', 'load_student', 'registry']

install_safe_loader()
serve_missing_ops()
resolve_mmseg_bases()


def __getattr__(name: str) -> Any:
    """Import `load_student` on first use: it needs the models, which a config or a look-up does not."""
    if name == 'load_student':
        from mkd_plugin.interop.student import load_student

        return load_student
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
