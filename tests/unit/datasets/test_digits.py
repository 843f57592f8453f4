"""The embedded digits: a fixed split, real files, paired draws."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mkd_plugin.datasets import draw_labelled, write_digits
from mkd_plugin.datasets.digits import COMPLETE, NUM_TRAIN, NUM_VAL


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


def numbers(root, split):
    return {int(path.stem): int(path.parent.name) for path in (root / split).glob('*/*.png')}


def test_write_digits__every_scan_once_under_its_class(root):
    digits = load_digits()
    train, val = numbers(root, 'train'), numbers(root, 'val')
    assert (len(train), len(val)) == (NUM_TRAIN, NUM_VAL)
    assert train.keys() | val.keys() == set(range(len(digits.target)))
    assert all(digits.target[number] == label for number, label in {**train, **val}.items())


def test_write_digits__files_are_the_scans(root):
    number, label = next(iter(sorted(numbers(root, 'val').items())))
    picture = np.asarray(
        Image.open(root / 'val' / str(label) / f'{number:04d}.png').resize((8, 8), Image.Resampling.BOX)
    )
    scan = load_digits().images[number] * (255 / 16)
    assert np.corrcoef(picture.ravel(), scan.ravel())[0, 1] > 0.98


def test_write_digits__half_written_folder_is_completed_and_a_whole_one_left_alone(root, tmp_path):
    write_digits(tmp_path)
    (tmp_path / COMPLETE).unlink()
    victim = next((tmp_path / 'train').glob('*/*.png'))
    content = victim.read_bytes()
    victim.write_bytes(content[:20])
    write_digits(tmp_path)
    assert victim.read_bytes() == content
    victim.unlink()
    write_digits(tmp_path)
    assert not victim.exists()


def test_draw_labelled__balanced_paired_and_nested(root):
    few, more = (draw_labelled(root, count, draw=1).read_text().split('\n')[:-1] for count in (2, 10))
    assert (len(few), len(more)) == (20, 100)
    assert set(few) < set(more)
    assert draw_labelled(root, 2, draw=1).read_text().split('\n')[:-1] == few
    assert draw_labelled(root, 2, draw=2).read_text().split('\n')[:-1] != few
    labels = [line.split()[1] for line in more]
    assert all(labels.count(str(digit)) == 10 for digit in range(10))
    assert all((root / 'train' / line.split()[0]).is_file() for line in more)


@pytest.mark.parametrize('count', [0, 10_000])
def test_draw_labelled__refuses_more_than_there_are(root, count):
    with pytest.raises(ValueError, match=f'labels_per_class={count}: class 0 has 1 … 1'):
        draw_labelled(root, count, draw=0)
