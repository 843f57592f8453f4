"""Which host packages are installed, whether this plugin supports them, and how to install a missing one.

Every host module is provided by several distributions: OpenMMLab's own and their maintained continuation (`onedl-*`).
Neither can be a hard requirement, so this module makes pip's checks, from metadata alone: no host is imported.
"""

import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.specifiers import SpecifierSet


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host module and the distributions that can provide it."""

    module: str  #: Name of the module
    onedl: str  #: The maintained distribution
    openmmlab: tuple[str, ...]  #: OpenMMLab's distributions; the first is recommended
    supported: str  #: Supported versions, the same for all distributions (PEP 440)

    def installed(self) -> dict[str, str]:
        """Return name and version of every installed distribution that provides this module."""
        found = {}
        for name in (self.onedl, *self.openmmlab):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found


HOSTS = (
    Host(module='mmengine', onedl='onedl-mmengine', openmmlab=('mmengine', 'mmengine-lite'), supported='>=0.10,<0.11'),
    Host(module='mmcv', onedl='onedl-mmcv', openmmlab=('mmcv-lite', 'mmcv'), supported='>=2.0,<2.4'),
    Host(module='mmpretrain', onedl='onedl-mmpretrain', openmmlab=('mmpretrain',), supported='>=1.2,<1.4'),
    Host(module='mmdet', onedl='onedl-mmdetection', openmmlab=('mmdet',), supported='>=3.2,<3.6'),
    Host(module='mmseg', onedl='onedl-mmsegmentation', openmmlab=('mmsegmentation',), supported='>=1.2,<1.5'),
)


def check_hosts() -> None:
    """Check that the hosts are installed, unambiguous and of a supported version.

    Warns if pre-training and classification cannot run because mmpretrain or mmcv is missing.

    Raises:
        ImportError: mmengine is missing, a host is installed twice, its version is not supported, or transformers is too
            new for mmpretrain; the message has the command that repairs it.
    """
    installed = {host: host.installed() for host in HOSTS}
    for host, found in installed.items():
        _check_unambiguous(host, found)
    for host, found in installed.items():
        _check_version(host, found)
        if host.module == 'mmpretrain' and found:
            _check_transformers()

    needed = [host for host in HOSTS if host.module in ('mmengine', 'mmcv', 'mmpretrain') and not installed[host]]
    if not needed:
        return
    onedl = uses_onedl()
    modules = ' and '.join(host.module for host in needed)
    command = _pip_install(*((host.onedl if onedl else host.openmmlab[0], host) for host in needed))
    if any(host.module == 'mmengine' for host in needed):
        raise ImportError(f'mkd_plugin cannot run without mmengine, which is not installed: run `{command}`.')
    verb, pronoun = ('is', 'it') if len(needed) == 1 else ('are', 'them')
    warnings.warn(
        f'{modules} {verb} not installed, and pre-training and classification need {pronoun}: run `{command}`.',
        stacklevel=3,  # the line that imports mkd_plugin
    )


def uses_onedl() -> bool:
    """Whether to recommend onedl's distributions: not to those who have OpenMMLab's own."""
    names = [name for host in HOSTS for name in host.installed()]
    return not names or any(name.startswith('onedl-') for name in names)


def explain_missing_host(module: str | None, what: str) -> str | None:
    """Return a sentence with the command that installs a host that ``what`` needs; None if it is installed, or no host."""
    host = next((host for host in HOSTS if host.module == module), None)
    if host is None or host.installed() or find_spec(host.module) is not None:
        return None
    extra = ('onedl' if uses_onedl() else 'openmmlab') + ('-dense' if module in ('mmdet', 'mmseg') else '')
    root = Path(__file__).resolve().parents[2]
    source = f'-e "{root}[{extra}]"' if (root / 'setup.py').is_file() else f'"mkd-plugin[{extra}]"'
    return f'{what} needs {module}, which is not installed: run `pip install {source}`.'


def how_to_compile_ops() -> str:
    """Return the commands that install mmcv with its ops."""
    mmcv = next(host for host in HOSTS if host.module == 'mmcv')
    installed = mmcv.installed()
    name = mmcv.onedl if mmcv.onedl in installed else 'mmcv'
    return (
        f'install mmcv with compiled ops: `pip uninstall -y {" ".join(installed) or name}`, then `pip install '
        f'--no-build-isolation --no-binary {name} {name}` (about 16 minutes; torch 2.10 was seen to work, 2.14 not).'
    )


def _check_unambiguous(host: Host, found: dict[str, str]) -> None:
    if len(found) < 2:
        return
    keep = next(iter(found))
    raise ImportError(
        f"{' and '.join(found)} are both installed and overwrite each other's files of the module {host.module}: run "
        f'`pip uninstall -y {" ".join(found)}`, then `{_pip_install((keep, host))}`.'
    )


def _check_version(host: Host, found: dict[str, str]) -> None:
    for name, number in found.items():
        if not SpecifierSet(host.supported).contains(number, prereleases=True):
            raise ImportError(
                f'mkd_plugin supports {host.module} {host.supported}, but {name} {number} is installed: run '
                f'`{_pip_install((name, host))}`.'
            )


def _check_transformers() -> None:
    """mmpretrain imports transformers if it is installed, and fails on version 5: `NoneType takes no arguments`."""
    try:
        number = version('transformers')
    except PackageNotFoundError:
        return
    if not SpecifierSet('<5').contains(number, prereleases=True):
        raise ImportError(
            f'transformers {number} is installed, and mmpretrain cannot be imported beside version 5 or newer: run '
            '`pip install "transformers<5"`.'
        )


def _pip_install(*wanted: tuple[str, Host]) -> str:
    return ' '.join(['pip install', *(f'"{name}{host.supported}"' for name, host in wanted)])
