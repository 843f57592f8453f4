"""The generators of the site (docs/_ext): links, pages of methods, docstrings. `make docs` builds the whole."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
import yaml
from helpers.house import ROOT


@pytest.fixture(scope='module', autouse=True)
def extensions():
    """Make docs/_ext importable, as docs/conf.py does."""
    sys.path.insert(0, str(ROOT / 'docs/_ext'))
    yield
    sys.path.remove(str(ROOT / 'docs/_ext'))


def test_rewrite__points_to_the_page_that_shows_a_file():
    rewrite = import_module('repository_links').rewrite
    page, source = 'downstream.md', 'docs/downstream.md'
    assert rewrite('[a](../configs/dbot/README.md#ablations)', page, source) == '[a](methods/dbot.md#ablations)'
    assert rewrite('[a](../CONTRIBUTING.md)', page, source) == '[a](contributing.md)'
    assert rewrite('[a](../configs/_base_)', page, source) == 'a'  # a folder
    assert (
        rewrite('[a](train.md#x) ![a](quickstart/curves.png)', page, source)
        == '[a](train.md#x) ![a](quickstart/curves.png)'
    )
    page, source = 'methods/dbot.md', 'configs/dbot/README.md'
    assert rewrite('[a](../../docs/train.md)', page, source) == '[a](../train.md)'
    assert rewrite('[a](dbot_digits.py)', page, source) == '[a](../../configs/dbot/dbot_digits.py)'
    assert rewrite('[a](../mae)', page, source) == '[a](mae.md)'
    assert rewrite('[a](https://arxiv.org/abs/1)', page, source) == '[a](https://arxiv.org/abs/1)'


def test_rewrite__does_not_depend_on_the_name_of_the_clone(tmp_path, monkeypatch):
    (tmp_path / 'mkd_plugin').mkdir()
    monkeypatch.chdir(tmp_path / 'mkd_plugin')
    link = '[a](../mkd_plugin/structures.py)'
    assert import_module('repository_links').rewrite(link, 'architecture.md', 'docs/architecture.md') == link


def test_methods__are_all_that_have_a_readme():
    methods = import_module('method_pages').METHODS
    assert set(methods) == {path.parent.name for path in ROOT.glob('configs/*/README.md')}


@pytest.mark.parametrize(
    'method',
    [
        *('dbot', 'maskdistill', 'dmae', 'hybrid_distill', 'mae', 'fd', 'unified_view'),
        *('tinymim', 'crossmae', 'caev2', 'gram', 'ijepa', 'data2vec2', 'proteus', 'multi_teacher'),
    ],
)
def test_method_page__has_equation_config_ablations_and_what_is_confirmed(method):
    pages = import_module('method_pages')
    page = pages.method_page(method, pages.METHODS[method])
    assert 'loss = ' in page
    assert '## What is confirmed here' in page
    assert "'mkd_plugin.MaskedDistiller'" in page
    path = ROOT / 'configs' / method / 'ablations.yml'
    rows = yaml.safe_load(path.read_text())['rows'] if path.is_file() else {}
    for name, row in rows.items():
        line = next(line for line in page.splitlines() if line.startswith(f'| `{name}` |'))
        assert f'| {row["paper"]} |' in line or row['paper'] is None


def test_docstrings__bars_and_blocks():
    to_rst = import_module('docstrings').to_rst
    assert to_rst(['|F| of it']) == ['\\|F\\| of it']
    assert to_rst(['as in:', '', '    code()', 'rest'])[0] == 'as in::'
    assert to_rst(['Args:', '    name: text']) == ['Args:', '    name: text']
