"""Damaged and lying images: decoded or refused by name, at little cost, and one of them never ends a run."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.bounds import bounded
from helpers.mutations import TAMPERING, edit, examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mkd_plugin.datasets import ImageFolder, LoadAnyImage
from mkd_plugin.datasets.loading import UnreadableImageError, decode
from mkd_plugin.evaluation.images import Preprocessing, open_images

pytestmark = pytest.mark.filterwarnings('ignore')  # Pillow's, about damaged files

FORMS = {
    'jpeg': dict(mode='RGB', format='JPEG', quality=80),
    'progressive jpeg': dict(mode='RGB', format='JPEG', progressive=True),
    'cmyk jpeg': dict(mode='CMYK', format='JPEG'),
    'png': dict(mode='RGB', format='PNG'),
    'transparent png': dict(mode='RGBA', format='PNG'),
    'palette png': dict(mode='P', format='PNG'),
    '16-bit png': dict(mode='I;16', format='PNG'),
    'webp': dict(mode='RGB', format='WEBP', quality=50),
    'gif': dict(mode='P', format='GIF'),
    'tiff': dict(mode='RGB', format='TIFF'),
    'bmp': dict(mode='RGB', format='BMP'),
    'ppm': dict(mode='RGB', format='PPM'),
}
SMALL = Preprocessing((16, 16), 18)
LARGEST = 8 * (Image.MAX_IMAGE_PIXELS or 0)  # bytes of a picture of the largest size, as it is and as RGB
SIZES = st.sampled_from([0, 1, 17, 255, 4096, 32767, 65500, 65535])


@cache
def picture(form: str) -> bytes:
    """A small noisy picture."""
    options = dict(FORMS[form])
    mode, buffer = options.pop('mode'), io.BytesIO()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    image = noise.convert('L').convert('I').convert('I;16') if mode == 'I;16' else noise.convert(mode)
    image.save(buffer, **options)
    return buffer.getvalue()


def decode_within_bounds(content: bytes) -> np.ndarray | None:
    """Pixels, or None for a refused image."""
    try:
        with bounded(len(content), more=LARGEST):
            pixels = decode(content)
    except UnreadableImageError:
        return None
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    return pixels


@pytest.mark.parametrize('form', FORMS)
@given(edits=TAMPERING)
@examples(0.5)
def test_decode__damaged_files(form, edits):
    decode_within_bounds(edit(picture(form), edits))


def jpeg_of_size(height: int, width: int, before: bytes) -> bytes:
    """A JPEG whose header states another size, with other markers before that."""
    content = bytearray(picture('jpeg'))
    place = content.index(b'\xff\xc0')
    content[place + 5 : place + 9] = struct.pack('>2H', height, width)
    return bytes(content[:place]) + before + bytes(content[place:])


MARKERS = st.sampled_from(
    [b'', b'\xff\x01', b'\xff\xd0', b'\xff\xff', b'\xff\xfe\x00\x04ab', b'\xff\xe1\x00\x02', b'\xff']
)


@given(height=SIZES, width=SIZES, before=MARKERS)
def test_decode__a_jpeg_that_lies_about_its_size(height, width, before):
    """Also behind TEM, RST and fill bytes, which readers of markers may take for something else."""
    decode_within_bounds(jpeg_of_size(height, width, before))


PNG_SIZES = st.sampled_from([0, 1, 17, 4096, 50_000, 2**20, 2**31 - 1])


@given(height=PNG_SIZES, width=PNG_SIZES)
def test_decode__a_png_that_lies_about_its_size(height, width):
    content = bytearray(picture('png'))
    content[16:24] = struct.pack('>2I', width, height)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    decode_within_bounds(bytes(content))


def test_decode__a_picture_that_really_is_as_large_as_it_says():
    """144 million pixels in few bytes."""
    buffer = io.BytesIO()
    Image.new('1', (12_000, 12_000)).save(buffer, 'PNG')
    content = buffer.getvalue()
    with pytest.raises(UnreadableImageError, match='more than 89,478,485 pixels'), bounded(len(content)):
        decode(content)


@pytest.mark.parametrize('form', ['jpeg', 'png', 'webp'])
@given(edits=TAMPERING)
@examples(0.4)
def test_load_any_image__names_the_file(tmp_path, form, edits):
    path = tmp_path / 'picture'
    path.write_bytes(edit(picture(form), edits))
    try:
        image = LoadAnyImage().transform(dict(img_path=str(path)))['img']
        assert image.shape[2] == 3
    except UnreadableImageError as error:
        assert str(path) in str(error)


def labelled(folder: Path, content: bytes) -> Path:
    """A class folder with good pictures and one of this content."""
    (folder / 'a').mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (folder / 'a' / f'{number}.png').write_bytes(picture('png'))
    (folder / 'a' / '1.png').write_bytes(content)
    return folder


@pytest.mark.parametrize('form', ['jpeg', 'png', 'webp'])
@given(edits=TAMPERING)
@examples(0.4)
def test_labelled_images__names_the_file(tmp_path, form, edits):
    content = edit(picture(form), edits)
    images = open_images(labelled(tmp_path, content), SMALL)
    try:
        with bounded(len(content), more=LARGEST):
            assert images[1].shape == (3, 16, 16)
    except ValueError as error:
        assert str(tmp_path / 'a' / '1.png') in str(error)


@given(height=SIZES, width=SIZES, before=MARKERS)
@examples(0.5)
def test_labelled_images__a_jpeg_that_lies_about_its_size(tmp_path, height, width, before):
    content = jpeg_of_size(height, width, before)
    images = open_images(labelled(tmp_path, content), SMALL)
    try:
        with bounded(len(content), more=LARGEST):
            images[1]
    except ValueError as error:
        assert '1.png' in str(error)


@given(edits=TAMPERING, form=st.sampled_from(sorted(FORMS)))
def test_image_folder__one_bad_image_never_ends_a_run(tmp_path, form, edits):
    folder = labelled(tmp_path, edit(picture(form), edits))
    pipeline = [dict(type='mkd_plugin.LoadAnyImage')]
    images = ImageFolder(data_root=str(folder), pipeline=pipeline, serialize_data=False)
    assert [images[index]['img'].shape[2] for index in range(3)] == [3, 3, 3]
