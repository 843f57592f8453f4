"""Export a checkpoint: the same as `mkd export`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed
from mkd_cli.export import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
