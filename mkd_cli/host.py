"""Run a host package's own script with mkd_plugin imported first, as `python -m mkd_plugin` does.

    mkd host SCRIPT [ARGUMENTS ...]

mmdet's and mmseg's tools/train.py import their package before they read the config that names this plugin, which fails where
mmcv was installed without compiled ops.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mkd_cli.command import script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument('script', metavar='SCRIPT', help='path of the script')
    parser.add_argument('rest', nargs=argparse.REMAINDER, metavar='ARGUMENTS', help='arguments of the script')


def run(args: argparse.Namespace) -> int:
    """Run the script."""
    from mkd_plugin.__main__ import main as run_script

    if not Path(args.script).is_file():
        raise ValueError(f'There is no script {args.script}. Give the path of one, such as tools/train.py of a host.')
    run_script([args.script, *args.rest])
    return 0


main = script('host')
