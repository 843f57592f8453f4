"""Reads images of any kind as 8-bit colour.

The hosts' loaders misread files that are common in collections of photographs: cv2 returns a truncated JPEG half grey without
an error, and shows the colours below transparency; Pillow turns 16-bit grey images white.

Complete, ordinary JPEGs are read by cv2, which returns the same pixels as Pillow in less time (benchmarks/data_time.py).
torchvision's decoder is as fast and stricter, but deprecated. All other files are read by Pillow.

A file can ask for far more memory and time than its size suggests. What it asks for is checked before any pixel is decoded:
at most ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, which the variable OPENCV_IO_MAX_IMAGE_PIXELS sets, and ``MOST_SCANS`` scans.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmcv.image import imfrombytes, rgb2bgr
from mmcv.transforms import BaseTransform
from mmengine.fileio import get
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mkd_plugin.registry import TRANSFORMS

# mmcv's own for grey images with transparency, close to ImageNet's mean
BACKGROUND = (124, 117, 104)
# JPEG markers that hold the size of the picture: baseline, extended and progressive, with Huffman coding
FRAMES = (0xC0, 0xC1, 0xC2)
APP1 = 0xE1  # JPEG marker of EXIF and XMP
# Markers of segments that may precede the size: tables, restart interval, APP0 to APP15, comment. A decoder skips each by its
# length. After any other marker two readers may disagree on where the next one is, and so on the size.
SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))
SCAN, END = 0xDA, 0xD9
MARKER = re.compile(rb'\xff+([^\x00\x01\xd0-\xd8\xff])')  # those without a length are skipped
MOST_SCANS = 50  # encoders write about 10. Each takes 1 ns for each pixel of the picture: 4.5 s for the largest
MOST_SEGMENTS = 10_000  # in a JPEG; a profile or thumbnail has up to 64 kB in each
LARGEST_FILE = 16  # bytes for each pixel that is allowed: four channels of 32 bits


class UnreadableImageError(ValueError):
    """A file that is no image, is truncated, or holds pixels without a defined brightness."""


@TRANSFORMS.register_module()
class LoadAnyImage(BaseTransform):
    """Replaces ``LoadImageFromFile``, with the same keys and BGR order, for images of any kind; damaged ones raise.

    ``backend_args`` is for mmengine's file backends (LMDB, object stores); by default the path's prefix chooses one.
    """

    def __init__(self, *, backend_args: dict[str, Any] | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``img`` (H, W, 3 uint8 BGR), ``img_shape`` and ``ori_shape``; errors are those of :func:`read_image`."""
        image = read_image(results['img_path'], order='bgr', backend_args=self.backend_args)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(backend_args={self.backend_args})'


def read_image(
    path: str, *, order: Literal['rgb', 'bgr'] = 'rgb', backend_args: dict[str, Any] | None = None
) -> NDArray[np.uint8]:
    """Read an image file to (H, W, 3) uint8; options as for :class:`LoadAnyImage` and :func:`decode`.

    Raises UnreadableImageError if it does not exist, cannot be opened or is no regular file, or :func:`decode` refuses it.
    """
    try:
        if backend_args is None and '://' not in path:
            check_regular(path)
        return decode(get(path, backend_args=backend_args), order=order)
    except (OSError, UnreadableImageError) as error:
        raise UnreadableImageError(f'{path}: {error}') from error


def check_regular(path: str | Path, *, most: float | None = None) -> None:
    """Raise UnreadableImageError for what may never end or block when it is read, or has more bytes than any image."""
    status = os.stat(path)
    if most is None:
        most = LARGEST_FILE * (Image.MAX_IMAGE_PIXELS or math.inf)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError('not a regular file, but a folder, pipe, socket or device')
    if status.st_size > most:
        raise UnreadableImageError(f'{status.st_size:,} bytes, more than {LARGEST_FILE} for each pixel that is allowed')


def decode(content: bytes, *, order: Literal['rgb', 'bgr'] = 'rgb') -> NDArray[np.uint8]:
    """Decode the bytes of an image file to (H, W, 3) uint8, with the channels in this order.

    Raises UnreadableImageError if they are no complete image, or one with too many pixels or scans.
    """
    if content.startswith(b'\xff\xd8') and count_scans(content) > MOST_SCANS:
        raise UnreadableImageError(f'a JPEG of more than {MOST_SCANS} scans or {MOST_SEGMENTS:,} segments')
    if is_ordinary_jpeg(content):
        image = imfrombytes(content, backend='cv2')
        if image is not None:
            return image if order == 'bgr' else rgb2bgr(image)  # either way round
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == 'EPS':
                raise UnreadableImageError('an EPS drawing, which Pillow would run in Ghostscript')
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):  # Pillow refuses from twice the limit
                raise Image.DecompressionBombError
            pixels = np.asarray(to_rgb(image))
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason = f'more than {Image.MAX_IMAGE_PIXELS:,} pixels; the variable OPENCV_IO_MAX_IMAGE_PIXELS sets the limit'
        raise UnreadableImageError(reason) from error
    except UnidentifiedImageError as error:  # its own message is the address of the buffer
        raise UnreadableImageError('cannot identify the format: it is no image, or damaged') from error
    # decoders raise almost anything on damaged files; Pillow lists OSError, SyntaxError, ValueError and struct.error
    except Exception as error:
        raise UnreadableImageError(f'{type(error).__name__}: {error}') from error
    return pixels if order == 'rgb' else rgb2bgr(pixels)


def count_scans(content: bytes) -> int:
    """Return an upper bound of the number of scans of a JPEG, exact between ``MOST_SCANS`` and ``MOST_SEGMENTS``."""
    scans, place = 0, 2
    for _ in range(MOST_SEGMENTS):
        found = MARKER.search(content, place)
        if found is None or found[1][0] == END:
            return scans
        if found[1][0] == SCAN:
            scans += 1
            if scans == 1 and (bound := content.count(bytes((0xFF, SCAN)), found.start())) <= MOST_SCANS:
                return bound
        place = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2], 'big'))
    return MOST_SEGMENTS


def is_ordinary_jpeg(content: bytes) -> bool:
    """Whether the bytes are a complete JPEG of three channels, within Pillow's size limit.

    Only the last bytes and the markers before the picture are read. Complete files with something after the picture's end
    (a second picture, padding) do not count as ordinary.
    """
    if not (content.startswith(b'\xff\xd8') and content.endswith(b'\xff\xd9')):
        return False
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], 'big')
        if marker in FRAMES:
            height, width = (int.from_bytes(content[place + at : place + at + 2], 'big') for at in (5, 7))
            return content[place + 9] == 3 and height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        if marker not in SEGMENTS or length < 2:
            return False
        if marker == APP1 and b'tiff:Orientation' in content[place : place + length]:
            return False  # an orientation in XMP, which cv2 ignores
        place += 2 + length
    return False


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to an upright 8-bit RGB image.

    16-bit grey keeps the higher byte, as libpng does for 16-bit colour; transparency (RGBA, LA, palettes) is composed over
    ``BACKGROUND``; Pillow converts all other modes. Raises UnreadableImageError for floating-point pixels, and for 32-bit
    integers outside 0 … 65535: black and white are undefined.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == 'I' or image.mode.startswith('I;16'):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise UnreadableImageError(f'32-bit pixels from {values.min()} to {values.max()}, not 0 … 65535')
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode == 'F':
        raise UnreadableImageError('floating-point pixels, for which black and white are undefined')
    if image.mode in ('LA', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        opaque = Image.new('RGBA', image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(opaque, image)
    return image if image.mode == 'RGB' else image.convert('RGB')
