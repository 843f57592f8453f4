"""What a checkpoint is: format, size, where it comes from. Nothing in the file is run.

python tools/inspect_checkpoint.py FILE [--config] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys

from mkd_plugin.interop.inspect import describe_checkpoint, render


def main() -> int:
    """Print the description; 1 if the file cannot be read or is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file')
    parser.add_argument('--config', action='store_true', help="also print the run's config, if the file has it as text")
    parser.add_argument('--json', action='store_true', help='for programs; always with the config')
    args = parser.parse_args()
    try:
        description = describe_checkpoint(args.file)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(description, default=str) if args.json else render(description, config=args.config))
    return 0


if __name__ == '__main__':
    sys.exit(main())
