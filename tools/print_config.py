"""Print a config with everything it inherits, as one that inherits nothing.

    python tools/print_config.py CONFIG [--out FILE] [--cfg-options KEY=VALUE …]

CONFIG is a path, or METHOD:ROW for an ablation. FILE (.py, .json or .yml) is a config that any host's tools can read: mmseg's
own cannot resolve a base `mmseg::…` if mmseg is onedl's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

from mkd_plugin.preflight.config import read_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config file, or METHOD:ROW for an ablation')
    parser.add_argument('--out', type=Path, help='write it there instead of printing it')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='changes of the config')
    return parser.parse_args()


def main() -> int:
    """Print or write; the exit code."""
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    if args.out is None:
        print(cfg.pretty_text)
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(args.out)
    print(f'{args.out}: {args.config}, with all it inherits.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
