"""Write the embedded digits as an image folder: the same as `mkd make-digits`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed
from mkd_cli.make_digits import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
