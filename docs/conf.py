"""Sphinx settings of the site; `make docs` builds it. The generated pages come from docs/_ext."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / '_ext')]
warnings.filterwarnings('ignore')  # the hosts' own, on import

project = 'mkd_plugin'
author = 'The mkd_plugin authors'
copyright = author  # noqa: A001
release = version = runpy.run_path(str(DOCS.parent / 'mkd_plugin' / 'version.py'))['__version__']

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'docstrings',
    'repository_links',
    'method_pages',
    'command_pages',
]
exclude_patterns = ['_build', '_ext', '**/README.md', 'reference/generated']
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 4
nb_execution_mode = 'force'
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_preserve_defaults = True
default_role = 'code'
smartquotes = False  # it would turn --option into a dash
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = 'furo'
html_title = f'mkd_plugin {release}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme_options = {'navigation_with_keys': True}
pygments_style = 'friendly'
pygments_dark_style = 'monokai'
copybutton_exclude = '.linenos, .gp, .go'
