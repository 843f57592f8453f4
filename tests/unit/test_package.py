"""The package around the models: hosts, shipped configs, what a wheel contains."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement

import mkd_plugin
from mkd_plugin.compat import hosts
from mkd_plugin.utils import configs as config

ROOT = Path(__file__).resolve().parents[2]
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}
OPENMMLAB = {
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmpretrain': '1.2.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
}


@pytest.fixture
def install(monkeypatch):
    """Pretend that exactly the given distributions are installed."""

    def pretend(distributions):
        def version(name):
            if name not in distributions:
                raise PackageNotFoundError(name)
            return distributions[name]

        monkeypatch.setattr(hosts, 'version', version)

    return pretend


def without(distributions, *names):
    return {name: version for name, version in distributions.items() if name not in names}


@pytest.mark.parametrize('distributions', [ONEDL, OPENMMLAB], ids=['onedl', 'openmmlab'])
def test_check_hosts__accepts_both_families(install, recwarn, distributions):
    install(distributions)
    hosts.check_hosts()
    assert not recwarn.list


@pytest.mark.parametrize(
    'version', ['0.10.0', '0.10.12rc1', '0.10.7+local'], ids=['first', 'release candidate', 'local']
)
def test_check_hosts__accepts_any_release_in_range(install, version):
    install({**ONEDL, 'onedl-mmengine': version})
    hosts.check_hosts()


def test_check_hosts__transformers_that_mmpretrain_dies_of(install):
    onedl = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'}
    install({**onedl, 'onedl-mmpretrain': '1.3.6', 'transformers': '5.23.0'})
    with pytest.raises(ImportError, match='transformers 5.23.0 is installed, .* `pip install "transformers<5"`'):
        hosts.check_hosts()
    install({**onedl, 'onedl-mmpretrain': '1.3.6', 'transformers': '4.57.6'})
    hosts.check_hosts()


def test_check_hosts__nothing_installed(install):
    install({})
    with pytest.raises(ImportError) as error:
        hosts.check_hosts()
    assert str(error.value) == (
        'mkd_plugin cannot run without mmengine, which is not installed: run `pip install '
        '"onedl-mmengine>=0.10,<0.11" "onedl-mmcv>=2.0,<2.4" "onedl-mmpretrain>=1.2,<1.4"`.'
    )


def test_check_hosts__missing_mmpretrain_warns_once(install, recwarn):
    install(without(ONEDL, 'onedl-mmpretrain'))
    hosts.check_hosts()
    (warning,) = recwarn.list
    assert str(warning.message) == (
        'mmpretrain is not installed, and pre-training and classification need it: run `pip install '
        '"onedl-mmpretrain>=1.2,<1.4"`.'
    )


def test_check_hosts__missing_mmcv_and_mmpretrain_warn_once(install, recwarn):
    install(without(ONEDL, 'onedl-mmpretrain', 'onedl-mmcv'))
    hosts.check_hosts()
    (warning,) = recwarn.list
    assert str(warning.message).startswith('mmcv and mmpretrain are not installed')


def test_check_hosts__recommends_the_family_that_is_installed(install):
    install(without(OPENMMLAB, 'mmpretrain'))
    with pytest.warns(UserWarning, match='`pip install "mmpretrain>=1.2,<1.4"`'):
        hosts.check_hosts()


def test_check_hosts__missing_dense_hosts_are_silent(install, recwarn):
    install(without(ONEDL, 'onedl-mmdetection', 'onedl-mmsegmentation'))
    hosts.check_hosts()
    assert not recwarn.list


@pytest.mark.parametrize(
    ('name', 'version', 'sentence'),
    [
        ('onedl-mmengine', '0.9.1', 'mmengine >=0.10,<0.11, but onedl-mmengine 0.9.1'),
        ('onedl-mmcv', '2.4.0', 'mmcv >=2.0,<2.4, but onedl-mmcv 2.4.0'),
        ('onedl-mmpretrain', '1.1.1', 'mmpretrain >=1.2,<1.4, but onedl-mmpretrain 1.1.1'),
        ('onedl-mmdetection', '3.6.0', 'mmdet >=3.2,<3.6, but onedl-mmdetection 3.6.0'),
        ('onedl-mmsegmentation', '1.5', 'mmseg >=1.2,<1.5, but onedl-mmsegmentation 1.5'),
    ],
)
def test_check_hosts__unsupported_version(install, name, version, sentence):
    install({**ONEDL, name: version})
    with pytest.raises(ImportError) as error:
        hosts.check_hosts()
    allowed = sentence.split()[1].rstrip(',')
    assert str(error.value) == f'mkd_plugin supports {sentence} is installed: run `pip install "{name}{allowed}"`.'


def test_check_hosts__two_distributions_of_one_module(install):
    install({**ONEDL, 'mmcv-lite': '2.1.0'})
    with pytest.raises(ImportError) as error:
        hosts.check_hosts()
    assert 'onedl-mmcv and mmcv-lite are both installed' in str(error.value)
    assert '`pip uninstall -y onedl-mmcv mmcv-lite`, then `pip install "onedl-mmcv>=2.0,<2.4"`' in str(error.value)


def test_pinned__fits_what_the_package_asks_for():
    """What the scripts install lies in every range that the package, its extras and its import check state."""
    pins = {name: str(specifier).removeprefix('==') for name, specifier in read_requirements('pinned')}
    constraints = dict(read_requirements('constraints'))
    for name, version in pins.items():
        assert version in constraints[name]
    for purpose in ('runtime', 'mminstall', 'dense', 'tests'):
        for name, specifier in read_requirements(purpose):
            assert pins[name] in specifier, f'{name} in requirements/{purpose}.txt'
    for host in hosts.HOSTS:
        assert pins[host.onedl] in Requirement(f'{host.onedl}{host.supported}').specifier


def read_requirements(purpose):
    lines = (ROOT / 'requirements' / f'{purpose}.txt').read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith('#')]
    return [(requirement.name.lower(), requirement.specifier) for requirement in wanted]


def test_import__loads_no_optional_package_and_no_model():
    script = """
import sys
import mkd_plugin
unwanted = ('mmdet', 'mmseg', 'timm', 'mkd_plugin.models', 'mkd_plugin.interop.student')
print([name for name in unwanted if name in sys.modules])
"""
    assert run_python(script) == '[]'


def test_import__costs_what_its_hosts_cost():
    """Beside its own small modules it imports nothing that the hosts do not, but `packaging` for their versions."""
    script = """
import sys
import mmengine.runner, mmpretrain.registry
before = set(sys.modules)
import mkd_plugin
print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - {'mkd_plugin', 'packaging'}))
"""
    assert run_python(script) == '[]'


def test_getattr__load_student_is_imported_on_first_use():
    from mkd_plugin.interop.student import load_student

    assert mkd_plugin.load_student is load_student


def test_getattr__unknown_name():
    with pytest.raises(AttributeError, match="module 'mkd_plugin' has no attribute 'load_teacher'"):
        _ = mkd_plugin.load_teacher


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A checkout with two small configs in place of this one."""
    method = tmp_path / 'configs' / 'dbot'
    method.mkdir(parents=True)
    (method / 'dbot_vit-base-p16_2x800e_in1k.py').write_text('max_epochs = 800\n')
    (method / 'dbot_vit-large-p16_2x800e_in1k.py').write_text('max_epochs = 800\n')
    monkeypatch.setattr(config, '_PACKAGE', tmp_path / 'mkd_plugin')
    return tmp_path


def test_config_root__prefers_the_installed_configs(checkout):
    assert config.config_root() == checkout / 'configs'
    installed = checkout / 'mkd_plugin' / '.mim' / 'configs'
    installed.mkdir(parents=True)
    assert config.config_root() == installed


@pytest.mark.parametrize('suffix', ['', '.py'])
def test_get_config__with_and_without_suffix(checkout, suffix):
    cfg = mkd_plugin.get_config(f'dbot/dbot_vit-base-p16_2x800e_in1k{suffix}')
    assert cfg.max_epochs == 800


@pytest.mark.parametrize('name', ['dbot_vit-base-p16_2x800e_in1k', 'dbot/dbot_vit-base-p16_800e_in1k.py'])
def test_get_config__unknown_name_lists_the_closest(checkout, name):
    with pytest.raises(ValueError) as error:
        mkd_plugin.get_config(name)
    assert 'dbot/dbot_vit-base-p16_2x800e_in1k, dbot/dbot_vit-large-p16_2x800e_in1k' in str(error.value)
    assert str(checkout / 'configs') in str(error.value)


def test_get_config__no_close_name(checkout):
    with pytest.raises(ValueError, match='no name is close to it'):
        mkd_plugin.get_config('?')


@pytest.fixture
def ablations(checkout):
    rows = {'short': {'config': 'dbot/dbot_vit-base-p16_2x800e_in1k', 'options': {'max_epochs': 100}}}
    (checkout / 'configs' / 'dbot' / 'ablations.yml').write_text(yaml.safe_dump({'rows': rows}))


def test_get_ablation__is_the_config_with_the_rows_options(ablations):
    assert mkd_plugin.get_ablation('dbot', 'short').max_epochs == 100


def test_get_ablation__unknown_row_or_method_lists_those_there_are(ablations):
    with pytest.raises(ValueError, match=r"no ablation 'long' of 'dbot'\. There are \['short'\]"):
        mkd_plugin.get_ablation('dbot', 'long')
    with pytest.raises(ValueError, match=r"no ablations for 'mae': there are some for \['dbot'\]"):
        mkd_plugin.get_ablation('mae', 'short')


def test_configs__base_names_are_unique():
    """`mim` finds a config by its base name and refuses a name it finds twice."""
    names = Counter(path.name for path in (ROOT / 'configs').rglob('*.py') if path.parent.name != '__pycache__')
    assert names
    assert [name for name, count in names.items() if count > 1] == []


def test_model_index__imports_every_metafile():
    imported = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(imported) == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/metafile.yml'))
    for metafile in imported:
        for model in yaml.safe_load((ROOT / metafile).read_text())['Models']:
            assert (ROOT / model['Config']).is_file(), f'{model["Name"]} in {metafile}'


def test_model_index__lists_every_small_config():
    """And as mim wants them: a name that is the file's, once, in a collection of the same file."""
    metafiles = [yaml.safe_load(path.read_text()) for path in ROOT.glob('configs/*/metafile.yml')]
    models = [model for metafile in metafiles for model in metafile['Models']]
    listed = Counter(model['Config'] for model in models)
    small = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/[!_]*/**/*digit*.py')}
    assert len(small) >= 13 and small <= set(listed) and max(listed.values()) == 1
    assert [model for model in models if Path(model['Config']).stem != model['Name']] == []
    for metafile in metafiles:
        collections = {collection['Name'] for collection in metafile['Collections']}
        assert {model['In Collection'] for model in metafile['Models']} <= collections


def test_find_config__takes_the_file_by_which_mim_finds_a_name(checkout):
    """An installation has an empty file `NAME` beside `NAME.py`: mim looks for exactly what it was given."""
    name = checkout / 'configs' / 'dbot' / 'dbot_vit-base-p16_2x800e_in1k'
    name.touch()
    assert mkd_plugin.get_config(str(name)).max_epochs == 800


def test_wheel__ships_what_mim_and_get_config_need(tmp_path):
    source = tmp_path / 'source'  # a build leaves mkd_plugin.egg-info behind
    for name in ('mkd_plugin', 'mkd_cli', 'configs', 'tools', 'tests', 'benchmarks', 'projects', 'requirements'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy2(ROOT / name, source)
    pip_wheel = ['-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--no-cache-dir', '-w', tmp_path]
    subprocess.run([sys.executable, *pip_wheel, source], check=True)

    (wheel,) = tmp_path.glob('*.whl')
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
        files = set(archive.namelist())
    metadata = f'mkd_plugin-{mkd_plugin.__version__}.dist-info'
    assert {name.split('/')[0] for name in files} == {'mkd_plugin', 'mkd_cli', metadata}
    assert {name for name in files if name.startswith(('mkd_plugin/', 'mkd_cli/')) and '/.mim/' not in name} == {
        path.relative_to(source).as_posix()
        for package in ('mkd_plugin', 'mkd_cli')
        for path in (source / package).rglob('*')
        if path.is_file()
    }
    assert 'mkd_plugin/py.typed' in files
    assert 'mkd = mkd_cli.main:main' in (tmp_path / 'site' / metadata / 'entry_points.txt').read_text()
    shipped = {
        path.relative_to(source).as_posix()
        for folder in ('configs', 'tools')
        for path in (source / folder).rglob('*')
        if path.is_file()
    }
    shipped |= {name.removesuffix('.py') for name in shipped if re.fullmatch(r'configs/(?!_).*\.py', name)}
    for mim in ('mkd_plugin/.mim/', f'{metadata}/.mim/'):  # of openmim, and of onedl-mim
        assert {name.removeprefix(mim) for name in files if name.startswith(mim)} == {*shipped, 'model-index.yml'}
    assert not (source / 'build').exists()

    found = 'c.__file__, str(c.config_root()), str(c.find_config(str(c.config_root() / "dbot/dbot_digits")))'
    script = f'import json, mkd_plugin.utils.configs as c; print(json.dumps([{found}]))'
    module, configs, named = json.loads(run_python(script, cwd=tmp_path / 'site'))
    assert Path(named) == Path(configs) / 'dbot/dbot_digits.py'  # as `mim train mkd_plugin dbot_digits` gives it
    assert Path(module) == tmp_path / 'site' / 'mkd_plugin' / 'utils' / 'configs.py'
    assert Path(configs) == tmp_path / 'site' / 'mkd_plugin' / '.mim' / 'configs'
    tool = tmp_path / 'site' / 'mkd_plugin' / '.mim' / 'tools' / 'print_config.py'
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}
    command = [sys.executable, tool, 'dbot/dbot_digits']
    printed = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert 'mkd_plugin.MaskedDistiller' in printed


def run_python(script, cwd=ROOT):
    """What a new interpreter prints; `cwd` comes first on its path."""
    command = [sys.executable, '-c', script]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize('script', ['setup_venv.sh', 'run_tests.sh', 'quickstart.sh'])
def test_setup_venv__without_python311(tmp_path, script):
    environment = {'PATH': '/usr/bin:/bin', 'PYTHON': '/nowhere/python3.11', 'VENV': str(tmp_path / 'venv')}
    command = ['bash', str(ROOT / 'tools' / script)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert 'needs Python 3.11, and none of these is one: /nowhere/python3.11' in result.stderr
    assert not (tmp_path / 'venv').exists()
