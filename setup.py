"""Package metadata; the settings of tools are in pyproject.toml."""

import runpy
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def copy_mim(target: Path) -> None:
    """Put what `mim` reads into `target`.

    `mim train mkd_plugin NAME` looks for a file of exactly that name, so there is an empty one beside each `NAME.py`.
    """
    for folder in ('configs', 'tools'):
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__'))
    for config in (target / 'configs').glob('[!_]*/**/*.py'):
        config.with_suffix('').touch()
    shutil.copy2(ROOT / 'model-index.yml', target)


class BuildWithMim(build_py):
    """Also puts configs and tools under `mkd_plugin/.mim`, where openmim and `mkd_plugin.get_config` look for them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout is read where it lies
            copy_mim(Path(self.build_lib, 'mkd_plugin', '.mim'))


class WheelWithMim(bdist_wheel):
    """Also puts them into the wheel's metadata folder, where onedl-mim looks for them.

    onedl-mim 0.5.1 takes the folder of an installation's first file for the package, and pip lists files sorted:
    `mkd_plugin-0.1.0.dist-info` comes before `mkd_plugin/`.
    """

    def write_wheelfile(self, wheelfile_base: str) -> None:
        super().write_wheelfile(wheelfile_base)
        if Path(wheelfile_base).parent == Path(self.bdist_dir):  # elsewhere for an editable installation
            copy_mim(Path(wheelfile_base, '.mim'))


def requirements(purpose: str) -> list[str]:
    """The requirement lines of requirements/<purpose>.txt."""
    lines = (ROOT / 'requirements' / f'{purpose}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


# The hosts are extras, never hard requirements: `onedl-mmcv` and `mmcv` write the same folder, so requiring
# either would break the installations of those who have the other.
ONEDL = requirements('mminstall')
# mmengine 0.10.7 imports pkg_resources, which setuptools 82 no longer has
OPENMMLAB = ['mmengine>=0.10,<0.11', 'mmcv-lite==2.1.0', 'mmpretrain==1.2.0', 'setuptools<82']

# Not `build/` in the checkout: a later wheel would ship what was deleted since, and onedl-mim, which searches an
# editable checkout for a config's base name, would find every config twice.
BUILD = TemporaryDirectory()

setup(
    name='mkd-plugin',
    version=runpy.run_path(str(ROOT / 'mkd_plugin' / 'version.py'))['__version__'],
    description='Masked knowledge distillation of vision transformers for the OpenMMLab packages',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The mkd_plugin authors',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    keywords=['knowledge distillation', 'masked image modeling', 'vision transformer', 'OpenMMLab'],
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mkd_plugin', 'mkd_plugin.*', 'mkd_cli', 'mkd_cli.*']),
    package_data={'mkd_plugin': ['py.typed', 'reporting/templates/*', '**/*.yml']},
    include_package_data=True,
    entry_points={'console_scripts': ['mkd = mkd_cli.main:main']},
    install_requires=requirements('runtime'),
    extras_require={
        'onedl': ONEDL,
        'onedl-dense': ONEDL + requirements('dense'),
        'openmmlab': OPENMMLAB,
        'openmmlab-dense': [*OPENMMLAB, 'mmdet==3.3.0', 'mmsegmentation==1.2.2'],
        'onnx': requirements('onnx'),
        'tests': requirements('tests') + requirements('onnx'),
        'docs': requirements('docs'),
    },
    cmdclass={'build_py': BuildWithMim, 'bdist_wheel': WheelWithMim},
    options={'build': {'build_base': BUILD.name}},
)
