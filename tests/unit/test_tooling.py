"""The files that CI, pre-commit, GitHub and citation managers read: they are valid and agree with the package."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from helpers.house import ROOT

import mkd_plugin


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding='utf-8'))


def test_citation__has_the_version_and_the_papers_of_the_methods():
    citation = read('CITATION.cff')
    assert citation['version'] == mkd_plugin.__version__
    papers = {re.search(r'\d{4}\.\d{5}', reference['url'])[0] for reference in citation['references']}
    read_mes = ''.join(path.read_text(encoding='utf-8') for path in ROOT.glob('configs/*/README.md'))
    assert papers == set(re.findall(r'arxiv\.org/abs/(\d{4}\.\d{5})', read_mes))
    assert all(reference['authors'] and reference['title'] for reference in citation['references'])


def test_pre_commit__is_valid_and_downloads_nothing():
    command = [sys.executable, '-m', 'pre_commit', 'validate-config', str(ROOT / '.pre-commit-config.yaml')]
    subprocess.run(command, check=True)
    assert {repo['repo'] for repo in read('.pre-commit-config.yaml')['repos']} == {'local'}


@pytest.mark.parametrize('name', ['tests', 'docs'])
def test_workflow__runs_commands_of_this_repository(name):
    workflow = read(f'.github/workflows/{name}.yml')
    commands = [step.get('run', '') for job in workflow['jobs'].values() for step in job['steps']]
    for script in re.findall(r'bash (\S+)', '\n'.join(commands)):
        assert (ROOT / script).is_file()
    targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert set(re.findall(r'\bmake (\w+)', '\n'.join(commands))) <= set(targets)


def test_workflow__the_wheels_script_uses_what_the_package_has():
    commands = [step.get('run', '') for step in read('.github/workflows/wheel.yml')['jobs']['wheel']['steps']]
    (script,) = re.findall(r"<<'PY'\n(.*?)^PY$", '\n'.join(commands), re.MULTILINE | re.DOTALL)
    exec(script, {})


def test_makefile__lists_every_target_by_default():
    listed = subprocess.run(['make', '-s'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert [line.split()[0] for line in listed.splitlines()] == targets
    assert {'fast', 'check', 'docs', 'quickstart'} <= set(targets)


@pytest.mark.parametrize('extra', ['tests', 'docs', 'runtime'])
def test_requirements__are_pinned(extra):
    """What an extra needs is in the tested environment."""
    lines = (ROOT / 'requirements' / f'{extra}.txt').read_text().split()
    names = {re.split(r'[<>=,]', line)[0].lower().replace('_', '-') for line in lines}
    pinned = {
        line.split('==')[0].lower().replace('_', '-')
        for line in (ROOT / 'requirements/constraints.txt').read_text().split()
    }
    assert names <= pinned
