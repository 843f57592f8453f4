"""Images that ask for far more memory or time than their size suggests are refused before they are decoded."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.hostile_images import END, HOSTILE, SCAN, assert_cheap, behind_tem, cost_of, encode, jpeg, many_scans
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from mkd_plugin.compat import image_size
from mkd_plugin.compat.image_size import VARIABLE, limit_image_size
from mkd_plugin.datasets import ImageFolder
from mkd_plugin.datasets.loading import UnreadableImageError, decode, is_ordinary_jpeg, read_image


@pytest.mark.parametrize('what', HOSTILE)
def test_decode__hostile_images_are_refused_at_little_cost(what):
    content = HOSTILE[what]()
    said, seconds, grown = cost_of(lambda: decode(content))
    assert said.startswith('UnreadableImageError'), said
    assert_cheap(len(content), seconds, grown)


def test_is_ordinary_jpeg__reads_the_size_that_the_decoder_reads():
    """A marker without length, and a length too short, would lead to a wrong place."""
    assert is_ordinary_jpeg(encode('JPEG')) and not is_ordinary_jpeg(behind_tem())
    whole = encode('JPEG')
    for before in (b'\xff\x01\x00\x02', b'\xff\xe1\x00\x00', b'\xff\xd0\x00\x02', b'\x00\x00'):
        assert not is_ordinary_jpeg(whole[:2] + before + whole[2:])
    assert is_ordinary_jpeg(whole[:2] + b'\xff\xfe\0\5abc' + whole[2:])


def test_decode__what_looks_like_scans_elsewhere_is_no_scan():
    """In a comment, or in a film after the picture, as telephones write it."""
    plain = encode('JPEG', progressive=True)
    film = plain + (SCAN + b'\0\2') * 1000
    comment = plain[:2] + b'\xff\xfe' + (2 + 4000).to_bytes(2, 'big') + (SCAN + b'\0\2') * 1000 + plain[2:]
    for content in (film, comment, many_scans(30, side=64)):
        assert decode(content).shape == (64, 64, 3)
    np.testing.assert_array_equal(decode(film), decode(plain))
    with pytest.raises(UnreadableImageError, match='more than 50 scans'):
        decode(plain[:-2] + plain[plain.rindex(SCAN) : -2] * 60 + END)


def test_decode__one_option_limits_the_pixels(monkeypatch):
    """Pillow's number, which OPENCV_IO_MAX_IMAGE_PIXELS sets, for what OpenCV reads and what Pillow reads."""
    assert int(os.environ[VARIABLE]) == Image.MAX_IMAGE_PIXELS == 89_478_485
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    for limit, allowed in ((64 * 64, True), (64 * 64 - 1, False)):
        monkeypatch.setenv(VARIABLE, str(limit))
        limit_image_size()
        for content in (encode('JPEG'), encode('PNG'), encode('GIF')):
            if allowed:
                assert decode(content).shape == (64, 64, 3)
            else:
                with pytest.raises(UnreadableImageError, match=f'more than 4,095 pixels; the variable {VARIABLE}'):
                    decode(content)
    for nonsense in ('abc', '0', '-1', ''):
        monkeypatch.setenv(VARIABLE, nonsense)
        with pytest.raises(ValueError, match=f'{VARIABLE}={nonsense}: give the number of pixels'):
            limit_image_size()


def test_limit__holds_for_opencv_and_so_for_the_hosts_loaders(tmp_path):
    """OpenCV reads the variable when it is loaded, so in a process of its own."""
    (tmp_path / 'large.jpg').write_bytes(jpeg(10_000, 10_000))
    script = 'import runpy, sys; runpy.run_path(sys.argv[1])["limit_image_size"](); import cv2; cv2.imread(sys.argv[2])'
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    command = [sys.executable, '-c', script, image_size.__file__, str(tmp_path / 'large.jpg')]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode and 'CV_IO_MAX_IMAGE_PIXELS' in done.stderr, done.stderr


def test_read_image__only_regular_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    with (tmp_path / 'sparse.jpg').open('wb') as file:
        file.truncate(2**40)
    for path, reason in (
        ('/dev/zero', 'not a regular file'),
        (tmp_path / 'pipe.jpg', 'not a regular file'),
        (tmp_path / 'folder.jpg', 'not a regular file'),
        (tmp_path / 'sparse.jpg', '1,099,511,627,776 bytes, more than 16 for each pixel'),
        (tmp_path / 'none.jpg', 'No such file'),
    ):
        with pytest.raises(UnreadableImageError, match=f'{path}: .*{reason}'):
            read_image(str(path))


@pytest.mark.parametrize('workers', [0, 2])
def test_image_folder__hostile_images_never_end_a_run(tmp_path, workers):
    """They are replaced and counted as broken ones are."""
    for name, make in (('a', lambda: encode('PNG')), ('b', behind_tem), ('c', lambda: many_scans(1000))):
        (tmp_path / f'{name}.jpg').write_bytes(make())
    os.mkfifo(tmp_path / 'd.jpg')
    (tmp_path / 'list.txt').write_text('a.jpg\nb.jpg\nc.jpg\nd.jpg\n/dev/zero\n')
    data = ImageFolder(
        data_root=str(tmp_path),
        ann_file='list.txt',
        pipeline=[dict(type='mkd_plugin.LoadAnyImage'), dict(type='mmpretrain.PackInputs')],
    )
    batches = list(DataLoader(data, batch_size=1, num_workers=workers, collate_fn=pseudo_collate))
    assert [batch['inputs'][0].shape for batch in batches] == [(3, 64, 64)] * 5
    assert data.unreadable == 4
