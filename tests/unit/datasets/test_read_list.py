"""Lists from any editor or system are read right, or refused with a reason."""

from __future__ import annotations

import os
import socket

import pytest
from helpers.hostile_images import assert_cheap, cost_of
from helpers.labelled_files import write_images

from mkd_plugin.datasets import ImageFolder
from mkd_plugin.datasets.folder import read_list
from mkd_plugin.evaluation.images import read_annotation
from mkd_plugin.evaluation.lists import published_share

NAMES = ['ä/é 1.png', 'b.png']


@pytest.mark.parametrize(
    'content',
    [
        'ä/é 1.png\nb.png\n'.encode(),
        'ä/é 1.png\r\nb.png'.encode(),
        '\n\nä/é 1.png\n   \n\t\nb.png\n\n\n'.encode(),
        '\ufeffä/é 1.png\nb.png\n'.encode(),
    ],
    ids=['plain', 'Windows', 'blank lines', 'byte order mark'],
)
def test_read_list__utf_8(tmp_path, content):
    (tmp_path / 'list.txt').write_bytes(content)
    assert read_list(tmp_path / 'list.txt') == NAMES


def test_read_list__latin_1_with_a_warning(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mkd_plugin.datasets.folder.print_log', lambda message, *_, **__: said.append(message))
    (tmp_path / 'list.txt').write_bytes('b.png\nä/é 1.png\n'.encode('latin-1'))
    assert read_list(tmp_path / 'list.txt') == NAMES[::-1]
    assert len(said) == 1 and 'list.txt is not UTF-8 (line 2): it is read as Latin-1' in said[0]


def test_read_list__only_text_in_regular_files(tmp_path):
    (tmp_path / 'utf16.txt').write_text('a.png\n', 'utf-16')
    (tmp_path / 'folder.txt').mkdir()
    os.mkfifo(tmp_path / 'pipe.txt')
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(str(tmp_path / 'socket.txt'))
    for path, reason in (
        (tmp_path / 'utf16.txt', 'is no text.*UTF-16. Save it as UTF-8'),
        (tmp_path / 'folder.txt', 'is a folder, pipe or device'),
        (tmp_path / 'pipe.txt', 'is a folder, pipe or device'),
        (tmp_path / 'socket.txt', 'is a folder, pipe or device'),
        ('/dev/zero', 'is a folder, pipe or device'),
        (tmp_path / 'none.txt', 'does not exist'),
    ):
        with pytest.raises(ValueError, match=f'The list {path} {reason}'):
            read_list(path)


@pytest.mark.parametrize(
    'byte, reason', [(b'\n', 'the list is empty'), (b'\0', 'is no text'), (b'a', 'longer than any path')]
)
def test_image_folder__lists_without_entries_cost_little(tmp_path, byte, reason):
    (tmp_path / 'list.txt').write_bytes(byte * 20_000_000)
    said, seconds, grown = cost_of(lambda: ImageFolder(data_root=str(tmp_path), ann_file='list.txt'))
    assert said.startswith('ValueError') and reason in said and len(said) < 300
    assert_cheap(20_000_000, seconds, grown)


def test_lists__are_read_alike_by_training_and_evaluation(tmp_path):
    """Byte order mark, a blank line and Latin-1, for images that exist."""
    folder = write_images(tmp_path, 'train', ('ä',), count=2)
    text = '\n'.join(['ä/0.png', '', 'ä/1.png'])
    for content in (text.encode('utf-8-sig'), text.encode('latin-1')):
        (tmp_path / 'list.txt').write_bytes(content)
        data = ImageFolder(data_root=str(folder), ann_file=str(tmp_path / 'list.txt'))
        assert [data.get_data_info(number)['img_path'] for number in range(2)] == [
            str(folder / 'ä/0.png'),
            str(folder / 'ä/1.png'),
        ]
        assert published_share(folder, tmp_path / 'list.txt') == [('ä/0.png', 0), ('ä/1.png', 0)]
        (tmp_path / 'labelled.txt').write_bytes(content.replace(b'.png', b'.png 3'))
        assert read_annotation(tmp_path / 'labelled.txt') == (['ä/0.png', 'ä/1.png'], [3, 3])


@pytest.mark.parametrize('label', ['-1', '1.0', 'cat', '10' * 9, '9' * 5000, '٣', '0x3', ''])
def test_read_annotation__labels_that_are_none(tmp_path, label):
    (tmp_path / 'list.txt').write_text(f'a.png 0\nb.png {label}\n')
    with pytest.raises(ValueError, match='no label for its image 2'):
        read_annotation(tmp_path / 'list.txt')


def test_read_annotation__labels_that_are_too_large(tmp_path):
    (tmp_path / 'list.txt').write_text('a.png 999999\n')
    assert read_annotation(tmp_path / 'list.txt') == (['a.png'], [999999])
    (tmp_path / 'list.txt').write_text('a.png 0\nb.png 1000000\n')
    with pytest.raises(ValueError, match='class id 1000000 of image 2 is not below 1,000,000'):
        read_annotation(tmp_path / 'list.txt')
