"""Write the reference of the commands from their parsers."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from generated import write_pages
from repository_links import ROOT

FOLDER = ROOT / 'docs' / 'reference' / 'generated'
SHELL = """## Shell scripts

| script | what it does |
|---|---|
"""


def commands() -> str:
    """Return the help of every command, in the order of `mkd --help`."""
    if find_spec('mkd_cli') is None:
        return ''
    from mkd_cli.command import Parser
    from mkd_cli.main import COMMANDS

    os.environ['COLUMNS'] = '88'  # argparse wraps help at the terminal's width
    sections = []
    for name, summary in COMMANDS.items():
        module = import_module(f'mkd_cli.{name.replace("-", "_")}')
        parser = Parser(prog=f'mkd {name}', description=module.__doc__)
        module.add_arguments(parser)
        script = ROOT / 'tools' / f'{name.replace("-", "_")}.py'
        where = f' In a checkout: `python {script.relative_to(ROOT)}`.' if script.is_file() else ''
        sections.append(
            f'## mkd {name}\n\n{summary[0].upper()}{summary[1:]}.{where}\n\n```text\n{parser.format_help().rstrip()}\n```\n'
        )
    return '\n'.join(sections)


def shell_scripts() -> str:
    """Return a table of the shell scripts, each with the first sentence of its comment."""
    rows = []
    for path in sorted((ROOT / 'tools').glob('*.sh')):
        comment = [
            line[1:].strip() for line in path.read_text(encoding='utf-8').splitlines()[1:] if line.startswith('#')
        ]
        if path.name != 'launch.sh' and comment:
            rows.append(f'| `bash tools/{path.name}` | {comment[0]} |')
    return SHELL + '\n'.join(rows) + '\n'


def write(app: Any) -> None:
    """Write the page before Sphinx looks for documents."""
    write_pages(FOLDER, {'commands': commands() + '\n' + shell_scripts()})


def setup(app: Any) -> dict[str, Any]:
    """Register the generator."""
    app.connect('builder-inited', write)
    return dict(parallel_read_safe=True)
