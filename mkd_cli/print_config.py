"""Print a config with everything it inherits, as one file without bases.

    mkd print-config CONFIG [--out FILE] [--cfg-options KEY=VALUE ...]

The written file (.py, .json or .yml) can be read by any host's tools: mmseg's own cannot resolve a base `mmseg::...` if mmseg
was installed as onedl-mmsegmentation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mkd_cli.command import script
from mkd_cli.train import add_config_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument('config', help='config file, name of a shipped config, or METHOD:ROW for an ablation')
    parser.add_argument('--out', type=Path, metavar='FILE', help='file to write (default: print)')
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print or write; return the exit code."""
    from mkd_plugin.preflight.config import read_config
    from mkd_plugin.utils.configs import SUFFIXES, parse_options

    if args.out is not None and args.out.suffix not in SUFFIXES:
        raise ValueError(f'--out {args.out}: give a file that ends in {", ".join(SUFFIXES)}.')
    cfg = read_config(args.config, parse_options(args.cfg_options))
    if args.out is None:
        print(cfg.pretty_text)
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(args.out)
    print(f'{args.out} holds {args.config} with everything it inherits.')
    return 0


main = script('print_config')
