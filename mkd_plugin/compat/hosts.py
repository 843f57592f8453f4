"""Which host packages are installed, and whether this plugin fits them.

Every host module is written by several distributions: OpenMMLab's own and their maintained continuation (`onedl-*`).
Neither can be a hard requirement, so what pip would check is checked here, from metadata alone: no host is imported.
"""

import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host module and the distributions that can provide it.

    Args:
        module: The name it is imported by.
        onedl: The maintained distribution.
        openmmlab: OpenMMLab's distributions; the first is the one to recommend.
        supported: The versions this plugin works with, the same for all of them (PEP 440).
    """

    module: str
    onedl: str
    openmmlab: tuple[str, ...]
    supported: str

    def installed(self) -> dict[str, str]:
        """Version by name of every installed distribution that provides this module."""
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
    """Check that the installed hosts are there, unambiguous and of a supported version.

    Warns, in one sentence, if pre-training and classification cannot run because mmpretrain or mmcv is missing.

    Raises:
        ImportError: mmengine is missing, a host is installed twice, its version is not supported, or transformers is too
            new for mmpretrain; one sentence with the command that mends it.
    """
    installed = {host: host.installed() for host in HOSTS}
    for host, found in installed.items():
        _check_unambiguous(host, found)
    for host, found in installed.items():
        _check_version(host, found)
        if host.module == 'mmpretrain' and found:
            _check_transformers()

    # Someone who has OpenMMLab's packages is not told to install onedl's beside them.
    names = {name for found in installed.values() for name in found}
    onedl = not names or any(name.startswith('onedl-') for name in names)
    needed = [host for host in HOSTS if host.module in ('mmengine', 'mmcv', 'mmpretrain') and not installed[host]]
    if not needed:
        return
    modules = ' and '.join(host.module for host in needed)
    command = _pip_install(*((host.onedl if onedl else host.openmmlab[0], host) for host in needed))
    if any(host.module == 'mmengine' for host in needed):
        raise ImportError(f'mkd_plugin cannot run without mmengine, which is not installed: run `{command}`.')
    verb, pronoun = ('is', 'it') if len(needed) == 1 else ('are', 'them')
    warnings.warn(
        f'{modules} {verb} not installed, and pre-training and classification need {pronoun}: run `{command}`.',
        stacklevel=3,  # the line that imports mkd_plugin
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
    """mmpretrain imports transformers if it is there, and dies of version 5: `TypeError: NoneType takes no arguments`."""
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
