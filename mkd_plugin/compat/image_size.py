"""One limit of pixels for every image that is read."""

from __future__ import annotations

import os

from PIL import Image

VARIABLE = 'OPENCV_IO_MAX_IMAGE_PIXELS'  # OpenCV's own, so that the hosts' loaders obey it, too


def limit_image_size() -> None:
    """Let OpenCV refuse images of more pixels than ``VARIABLE`` says, by default than Pillow's own limit.

    Pillow warns of such images, and refuses those of twice as many.

    Raises:
        ValueError: The variable is no positive number.
    """
    limit = os.environ.setdefault(VARIABLE, str(Image.MAX_IMAGE_PIXELS or 2**30))  # 2**30 is OpenCV's default
    if not limit.isdecimal() or int(limit) < 1:
        raise ValueError(f'{VARIABLE}={limit}: give the number of pixels that an image may have, such as 200000000.')
    Image.MAX_IMAGE_PIXELS = int(limit)
