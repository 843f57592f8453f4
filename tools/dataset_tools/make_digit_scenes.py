"""Write scenes of digits in the formats of COCO and ADE20K: the same as `mkd make-digit-scenes`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed
from mkd_cli.make_digit_scenes import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
