"""Image files of a few bytes that claim to be large, or that take long to decode."""

from __future__ import annotations

import io
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from helpers.hostile_files import memory

SIDE = 9400  # just within the limit of pixels
HANGS = 60  # seconds of processor time
FRAME, SCAN, END = b'\xff\xc0', b'\xff\xda', b'\xff\xd9'


def encode(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (64, 64), (200, 30, 60)).save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(width: int, height: int, *, progressive: bool = False) -> bytes:
    """A JPEG of 64 × 64 pixels whose header claims another size."""
    content = encode('JPEG', progressive=progressive)
    at = content.index(b'\xff\xc2' if progressive else FRAME) + 5
    return content[:at] + struct.pack('>HH', height, width) + content[at + 4 :]


def png(width: int, height: int) -> bytes:
    content, header = encode('PNG'), struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return content[:16] + header + struct.pack('>I', zlib.crc32(b'IHDR' + header)) + content[33:]


def bmp(width: int, height: int) -> bytes:
    content = encode('BMP')
    return content[:18] + struct.pack('<ii', width, height) + content[26:]


def many_scans(count: int, side: int = 1000) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.new('RGB', (side, side)).save(buffer, 'JPEG', progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(SCAN) : -2]
    return content[:-2] + last * count + END


def behind_tem() -> bytes:
    """A JPEG with a marker without length (TEM) that a careless reader skips with a small size after it, to the large one."""
    whole = jpeg(65000, 65000)
    false = b'\xff\x01\x00\x17' + FRAME + b'\0\x11\x08\0\x40\0\x40\x03' + b'\0' * 11
    return whole[:2] + false + whole[2:]


HOSTILE: dict[str, Callable[[], bytes]] = {
    'a JPEG of 4 gigapixels': lambda: jpeg(65000, 65000),
    'a progressive JPEG of 4 gigapixels': lambda: jpeg(65000, 65000, progressive=True),
    'a JPEG of 4 gigapixels behind TEM': behind_tem,
    'a JPEG of many scans': lambda: many_scans(10_000),
    'a JPEG of a million segments': lambda: b'\xff\xd8' + b'\xff\xfe\0\2' * 1_000_000 + encode('JPEG')[2:],
    'a JPEG without an end': lambda: jpeg(SIDE, SIDE, progressive=True)[:-2],
    'a PNG of 10¹⁸ pixels': lambda: png(2**30, 2**30),
    'a PNG without pixels': lambda: png(SIDE, SIDE),
    'a BMP of 2 gigapixels': lambda: bmp(50_000, 50_000),
    'a BMP without pixels': lambda: bmp(SIDE, SIDE),
    'a PPM without pixels': lambda: b'P6 9400 9400 255\n',
    'an EPS program': lambda: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n',
}


def cost_of(action: Callable[[], Any]) -> tuple[str, float, int]:
    """Run an action in a forked process; its ValueError or OSError, its processor time, and the bytes by which memory grew.

    Pages of libraries do not count: a forked process maps them only when it runs their code. One that hangs is ended.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (HANGS, HANGS))
        before, start = memory(), time.process_time()
        try:
            action()
            said = ''
        except (ValueError, OSError) as error:
            said = f'{type(error).__name__}: {error}'
        spent, after = time.process_time() - start, memory()
        grown = after['VmHWM'] - before['VmRSS'] - (after['RssFile'] - before['RssFile'])
        os.write(writer, f'{spent}\n{grown}\n{said}'.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        spent, grown, said = (pipe.read() or f'inf\n{2**63}\nthe process died').split('\n', 2)
    os.waitpid(child, 0)
    return said, float(spent), int(grown)


def assert_cheap(size: int, seconds: float, grown: int) -> None:
    """No file costs more than 8 times its size and 260 MB to refuse; the seconds are only told."""
    assert grown < 8 * size + 260 * 2**20, (size, seconds, grown)
