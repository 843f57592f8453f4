"""Reads an image of any kind as 8-bit colour.

What the hosts' loaders make of files that are common in collections of photographs: cv2 gives a truncated JPEG back half
grey and says nothing, and shows the colours that transparency hides; Pillow turns 16-bit grey images white.

Ordinary JPEGs that are whole are read by cv2, which gives Pillow's very pixels in less time (benchmarks/data_time.py).
torchvision's decoder is as fast and stricter, but is to be removed. All else goes to Pillow.
"""

from __future__ import annotations

import io
import math
from typing import Any, Literal

import numpy as np
from mmcv.image import imfrombytes, rgb2bgr
from mmcv.transforms import BaseTransform
from mmengine.fileio import get
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mkd_plugin.registry import TRANSFORMS

# mmcv's, which it uses for grey images with transparency: close to ImageNet's mean
BACKGROUND = (124, 117, 104)
# JPEG markers that say how large the picture is: baseline, extended and progressive, coded after Huffman
FRAMES = (0xC0, 0xC1, 0xC2)
APP1 = 0xE1  # and the one that holds EXIF and XMP


class UnreadableImageError(ValueError):
    """A file that is no image, is cut off, or has no meaning as a picture."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB image.

    * 16-bit grey: the higher byte, as libpng does for 16-bit colour.
    * Transparency (RGBA, LA, palettes with it): over ``BACKGROUND``.
    * CMYK, YCbCr, Lab, palettes, 1-bit: Pillow's conversion.

    Raises:
        UnreadableImageError: Floating-point or 32-bit pixels outside 0 … 65535, which say nothing of black and white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == 'I' or image.mode.startswith('I;16'):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise UnreadableImageError(f'32-bit pixels from {values.min()} to {values.max()}, not 0 … 65535')
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode == 'F':
        raise UnreadableImageError('floating-point pixels, of which nobody knows what is black and what is white')
    if image.mode in ('LA', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        opaque = Image.new('RGBA', image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(opaque, image)
    return image if image.mode == 'RGB' else image.convert('RGB')


def is_ordinary_jpeg(content: bytes) -> bool:
    """Whether it is a JPEG of three channels to its end, not larger than Pillow takes without a warning.

    Only its last bytes and the markers before the picture are looked at. What follows the end of some whole files (a second
    picture, padding) makes them no ordinary ones.
    """
    if not (content.startswith(b'\xff\xd8') and content.endswith(b'\xff\xd9')):
        return False
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], 'big')
        if marker in FRAMES:
            height, width = (int.from_bytes(content[place + at : place + at + 2], 'big') for at in (5, 7))
            return content[place + 9] == 3 and height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        if marker == APP1 and b'tiff:Orientation' in content[place : place + length]:
            return False  # XMP, in which cv2 does not look for it
        place += 2 + length
    return False


def decode(content: bytes, *, order: Literal['rgb', 'bgr'] = 'rgb') -> NDArray[np.uint8]:
    """The bytes of an image file → (H, W, 3) uint8, the channels in this order.

    Raises:
        UnreadableImageError: They are no image that can be read to its end.
    """
    if is_ordinary_jpeg(content):
        image = imfrombytes(content, backend='cv2')
        if image is not None:
            return image if order == 'bgr' else rgb2bgr(image)  # either way round
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(to_rgb(image))
    except UnreadableImageError:
        raise
    # a decoder may raise almost anything on a damaged file; Pillow's list is OSError, SyntaxError, ValueError, struct.error
    except Exception as error:
        raise UnreadableImageError(f'{type(error).__name__}: {error}') from error
    return pixels if order == 'rgb' else rgb2bgr(pixels)


@TRANSFORMS.register_module()
class LoadAnyImage(BaseTransform):
    """Takes the place of ``LoadImageFromFile``: same keys, and like it BGR, but any kind of image and no damaged one.

    Args:
        backend_args: As in mmengine's file backends (LMDB, object stores); by the path's prefix by default.
    """

    def __init__(self, *, backend_args: dict[str, Any] | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``img`` (H, W, 3 uint8 BGR), ``img_shape`` and ``ori_shape``.

        Raises:
            UnreadableImageError: The file is gone, cannot be opened, or is no complete image.
        """
        try:
            image = decode(get(results['img_path'], backend_args=self.backend_args), order='bgr')
        except OSError as error:
            raise UnreadableImageError(f'{results["img_path"]}: {error}') from error
        except UnreadableImageError as error:
            raise UnreadableImageError(f'{results["img_path"]}: {error}') from error
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(backend_args={self.backend_args})'
