"""Pack a folder of images into tar shards: the same as `mkd make-shards`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed
from mkd_cli.make_shards import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
