"""Fine-tune over several learning rates or numbers of frozen blocks: the same as `mkd sweep`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed
from mkd_cli.sweep import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
