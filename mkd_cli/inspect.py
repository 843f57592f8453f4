"""Describe a checkpoint: format, size, origin. Nothing in the file is run.

mkd inspect FILE [--config] [--json]
"""

from __future__ import annotations

import argparse

from mkd_cli.command import escaped, script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument('file', help='checkpoint file')
    parser.add_argument('--config', action='store_true', help="also print the run's config, if the file has it")
    parser.add_argument('--json', action='store_true', help='print JSON, always with the config')


def run(args: argparse.Namespace) -> int:
    """Print the description; return the exit code."""
    import json

    from mkd_plugin.interop.inspect import describe_checkpoint, render

    description = describe_checkpoint(args.file)
    print(json.dumps(description, default=str) if args.json else escaped(render(description, config=args.config)))
    return 0


main = script('inspect')
