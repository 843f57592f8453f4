from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.hostile_images import HOSTILE, assert_cheap, cost_of
from helpers.labelled_files import write_images
from PIL import Image

from mkd_plugin.evaluation.images import Preprocessing, check_same_classes, open_images, spread

SMALL = Preprocessing((16, 16), 18)


def test_open_images__classes_by_folder(tmp_path):
    images = open_images(write_images(tmp_path, 'train', ('bee', 'ant'), count=2), SMALL)
    assert images.classes == ('ant', 'bee')
    assert images.names == ['ant/0.png', 'ant/1.png', 'bee/0.png', 'bee/1.png']
    assert images.labels.tolist() == [0, 0, 1, 1]


def test_open_images__list(tmp_path):
    folder = write_images(tmp_path, 'train')
    (tmp_path / 'some.txt').write_text('cat/1.png 7\n\nant/0.png 3\n')
    images = open_images(folder, SMALL, annotation=tmp_path / 'some.txt')
    assert images.names == ['cat/1.png', 'ant/0.png'] and images.labels.tolist() == [7, 3]


def test_labelled_images__pixels_are_pillows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    (tmp_path / 'a').mkdir()
    Image.fromarray(pixels).save(tmp_path / 'a' / 'x.png')
    found = next(open_images(tmp_path, SMALL).batches(0, 1, batch_size=1, workers=0))[0]
    resized = Image.fromarray(pixels).resize((24, 18), Image.Resampling.BICUBIC).crop((4, 1, 20, 17))
    torch.testing.assert_close(found, torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255)


def test_identity__content_not_place_or_time(tmp_path):
    folder = write_images(tmp_path, 'train')
    first = open_images(folder, SMALL).identity()
    shutil.copytree(folder, tmp_path / 'copy')
    os.utime(tmp_path / 'copy' / 'ant' / '0.png', (0, 0))
    assert open_images(tmp_path / 'copy', SMALL).identity() == first
    assert open_images(folder, Preprocessing((16, 16), 20)).identity() != first
    content = bytearray((folder / 'bee' / '1.png').read_bytes())
    content[-20] ^= 1
    (folder / 'bee' / '1.png').write_bytes(content)
    assert open_images(folder, SMALL).identity() != first


def test_open_images__bad_input(tmp_path):
    with pytest.raises(ValueError, match='is not a folder'):
        open_images(tmp_path / 'nowhere', SMALL)
    folder = write_images(tmp_path, 'train')
    with pytest.raises(ValueError, match='no labels.*folder of its name'):
        open_images(folder / 'ant', SMALL)
    (folder / 'dog').mkdir()
    with pytest.raises(ValueError, match='no images in dog'):
        open_images(folder, SMALL)
    (tmp_path / 'some.txt').write_text('cat/1.png 7\nant/0.png\n')
    with pytest.raises(ValueError, match='no label for its image 2'):
        open_images(folder, SMALL, annotation=tmp_path / 'some.txt')
    with pytest.raises(ValueError, match=r'absent\.txt does not exist'):
        open_images(folder, SMALL, annotation=tmp_path / 'absent.txt')
    (tmp_path / 'empty.txt').write_text('\n')
    with pytest.raises(ValueError, match='is empty'):
        open_images(folder, SMALL, annotation=tmp_path / 'empty.txt')
    (folder / 'ant' / '0.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'0\.png cannot be read as an image'):
        open_images(folder / '..' / 'train', SMALL, annotation=write_list(tmp_path))[0]


def write_list(tmp_path):
    (tmp_path / 'one.txt').write_text('ant/0.png 0\n')
    return tmp_path / 'one.txt'


def test_preprocessing__crop_larger_than_the_edge():
    assert Preprocessing.standard((224, 224)).resize == 256
    with pytest.raises(ValueError, match='resize=16'):
        Preprocessing((24, 24), 16)


def test_check_same_classes__names_that_differ(tmp_path):
    train, val = write_images(tmp_path, 'train'), write_images(tmp_path, 'val', ('ant', 'bee', 'dog'))
    with pytest.raises(ValueError, match=r'only in .*train are cat, only in .*val dog'):
        check_same_classes(open_images(train, SMALL), open_images(val, SMALL))


def test_check_same_classes__class_without_a_training_image(tmp_path):
    folder = write_images(tmp_path, 'train')
    (tmp_path / 'val.txt').write_text('ant/0.png 5\n')
    with pytest.raises(ValueError, match='without a training image: ids 5'):
        check_same_classes(open_images(folder, SMALL), open_images(folder, SMALL, annotation=tmp_path / 'val.txt'))


NAMED = r'\S+bee/1\.png cannot be read as an image \(.+\)\. Repair or remove it\.'


@pytest.mark.parametrize('what', ['a JPEG of 4 gigapixels behind TEM', 'a JPEG of many scans', 'a PNG of 10¹⁸ pixels'])
def test_batches__hostile_images_are_named_at_little_cost(tmp_path, what):
    folder, content = write_images(tmp_path, 'train'), HOSTILE[what]()
    (folder / 'bee' / '1.png').write_bytes(content)
    images = open_images(folder, SMALL)
    said, seconds, grown = cost_of(lambda: list(images.batches(0, len(images), batch_size=2, workers=0)))
    assert re.fullmatch(f'ValueError: {NAMED}', said), said
    assert_cheap(len(content), seconds, grown)


def test_batches__a_worker_names_a_broken_image_without_its_traceback(tmp_path):
    folder = write_images(tmp_path, 'train')
    (folder / 'bee' / '1.png').write_bytes(b'no image')
    images = open_images(folder, SMALL)
    with pytest.raises(ValueError) as caught:
        list(images.batches(0, len(images), batch_size=2, workers=1))
    assert re.fullmatch(NAMED, str(caught.value))


def test_labelled_images__truncated_files_are_not_half_grey(tmp_path):
    """OpenCV's own loader returns them without an error."""
    (tmp_path / 'a').mkdir()
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a' / 'x.jpg')
    (tmp_path / 'a' / 'x.jpg').write_bytes((tmp_path / 'a' / 'x.jpg').read_bytes()[:3000])
    with pytest.raises(ValueError, match=r'x\.jpg cannot be read as an image \(OSError: image file is truncated'):
        open_images(tmp_path, SMALL)[0]


def test_identity__pipes_and_devices_are_refused(tmp_path):
    folder = write_images(tmp_path, 'train')
    os.mkfifo(folder / 'ant' / 'pipe.png')
    with pytest.raises(ValueError, match=r'pipe\.png cannot be read as an image \(not a regular file'):
        open_images(folder, SMALL).identity()
    (tmp_path / 'list.txt').write_text('/dev/zero 0\n')
    with pytest.raises(ValueError, match='/dev/zero cannot be read as an image'):
        open_images(folder, SMALL, annotation=tmp_path / 'list.txt').identity()


def test_spread__from_the_first_to_the_last():
    assert spread(3, 256) == [0, 1, 2] and spread(0, 5) == []
    found = spread(20_210, 256)
    assert len(found) == 256 == len(set(found)) and (found[0], found[-1]) == (0, 20_209)
