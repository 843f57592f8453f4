"""Write the features of a folder of images: the same as `mkd features`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed
from mkd_cli.features import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
