"""Lists and folders as people and programs write them: every name is found as it is, or the list is refused by name."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from helpers.bounds import bounded
from helpers.mutations import CHANGES, as_json, change, examples
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from mkd_plugin.datasets import ImageFolder
from mkd_plugin.evaluation.images import Preprocessing, open_images
from mkd_plugin.evaluation.lists import draw_share, listed_in_json, published_share

SMALL = Preprocessing((8, 8), 8)
OPTIONS = dict(pipeline=[dict(type='mkd_plugin.LoadAnyImage')], serialize_data=False)  # it collects garbage each time
ENCODINGS = st.sampled_from(['utf-8', 'utf-8-sig', 'latin-1', 'utf-16', 'utf-16-le', 'cp1252'])
ENDS = st.sampled_from(['\n', '\r\n', '\n\n', '\n \n', '\n\ufeff'])
ODD_LINES = st.sampled_from(
    ['', ' ', '\t', '#', '/dev/zero 0', '../x.png 0', '\0', 'a/1.png -1', 'a/1.png 1.5', 'a/1.png 1000000000000000000']
    + ['a/1.png', '0', 'a/1.png  0 ', 'a/1.png 0 0', 'a\\1.png 0', '\x1b[31m 0', '١ ١', 'a/1.png ²', 'nothing.png 0']
)
LINES = st.lists(st.one_of(st.just('a/1.png 0'), st.just('b/ü 2.png 1'), ODD_LINES), max_size=6)
# Names of folders and files that some reader could take for something else.
NAMES = st.sampled_from(
    [
        'plain',
        'two words',
        'a.tar@1+2',
        'x.tar',
        'ü',
        'e\u0301',
        '日本',
        'a#b',
        'a%20b',
        'a=b',
        '-dash',
        '.hidden',
        "it's",
    ]
    + ['a:b', '~', '$HOME', '*', '[ab]', 'con', '0', 'None', 'x' * 200, 'a\tb', 'a\nb', '{x}', 'http:', 's3:', '\\']
)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (9, 8), (200, 10, 10)).save(buffer, 'PNG')
    return buffer.getvalue()


PICTURE = picture()


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('images')
    for name in ('a/1.png', 'b/ü 2.png'):
        (root / name).parent.mkdir()
        (root / name).write_bytes(PICTURE)
    return root


def write_list(path: Path, lines: list[str], encoding: str, end: str) -> str:
    """Write a list; its text."""
    text = ''.join(line + end for line in lines)
    path.write_bytes(text.encode(encoding, errors='replace'))
    return text


def usual(lines: list[str], encoding: str) -> bool:
    """Whether a list has nothing but blank lines and good ones, in a UTF-8 of either kind."""
    return encoding in ('utf-8', 'utf-8-sig') and all(not line.strip() or line in GOOD for line in lines)


GOOD = {'a/1.png 0': ('a/1.png', 0), 'b/ü 2.png 1': ('b/ü 2.png', 1)}


@given(lines=LINES, encoding=ENCODINGS, end=ENDS)
def test_open_images__reads_a_list_or_names_it(folder, tmp_path, lines, encoding, end):
    path = tmp_path / 'list.txt'
    write_list(path, lines, encoding, end)
    wanted = [GOOD[line] for line in lines if line in GOOD]
    try:
        with bounded(path.stat().st_size):
            images = open_images(folder, SMALL, annotation=path)
    except ValueError as error:
        assert 'list.txt' in str(error), error
        assert not (wanted and usual(lines, encoding) and '\ufeff' not in end), error
        return
    if usual(lines, encoding) and '\ufeff' not in end:
        assert list(zip(images.names, images.labels.tolist(), strict=True)) == wanted


@given(lines=LINES, encoding=ENCODINGS, end=ENDS)
def test_image_folder__reads_a_list_or_names_it(folder, tmp_path, lines, encoding, end):
    path = tmp_path / 'list.txt'
    names = [line.rsplit(' ', 1)[0] for line in lines]
    write_list(path, names, encoding, end)
    wanted = [str(folder / GOOD[line][0]) for line in lines if line in GOOD]
    try:
        with bounded(path.stat().st_size):
            images = ImageFolder(data_root=str(folder), ann_file=str(path), **OPTIONS)
            found = [entry['img_path'] for entry in (images.get_data_info(i) for i in range(len(images)))]
    except ValueError as error:
        assert 'list.txt' in str(error), error
        assert not (wanted and usual(lines, encoding) and '\ufeff' not in end), error
        return
    if usual(lines, encoding) and '\ufeff' not in end:
        assert found == wanted
        assert images[0]['img'].shape == (8, 9, 3)


@given(lines=LINES, encoding=ENCODINGS, end=ENDS)
@examples(0.5)
def test_published_share__reads_a_list_or_names_it(folder, tmp_path, lines, encoding, end):
    path = tmp_path / 'list.txt'
    write_list(path, [line.rsplit(' ', 1)[0] for line in lines], encoding, end)
    try:
        found = published_share(folder, path)
    except ValueError as error:
        assert 'list.txt' in str(error), error
        return
    assert set(found) <= set(GOOD.values())


@given(changes=CHANGES, cut=st.booleans())
def test_listed_in_json__reads_a_list_or_names_it(folder, tmp_path, changes, cut):
    whole = dict(
        images=[dict(id=1, file_name='a/1.png'), dict(id=2, file_name='b/ü 2.png')],
        annotations=[dict(image_id=1, category_id=5), dict(image_id=2, category_id=7)],
        categories=[dict(id=5), dict(id=7)],
    )
    text = as_json(change(whole, changes))
    path = tmp_path / 'list.json'
    path.write_text(text[: len(text) // 2] if cut else text)
    try:
        found = listed_in_json(folder, path)
    except ValueError as error:
        assert 'list.json' in str(error), error
        return
    assert found and all(isinstance(name, str) and isinstance(label, int) for name, label in found)


@given(names=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4, unique=True), root=NAMES)
def test_folders__odd_names_are_found_and_read(tmp_path, names, root):
    top = tmp_path / 'tree'
    shutil.rmtree(top, ignore_errors=True)
    folder = top / root
    for parent, name in names:
        assume(not name.startswith('.'))  # mmengine leaves out hidden files, but not hidden folders
        (folder / parent).mkdir(parents=True, exist_ok=True)
        (folder / parent / f'{name}.png').write_bytes(PICTURE)
    wanted = sorted(str(path) for path in folder.rglob('*.png'))
    assume(len(wanted) == len(names))
    images = ImageFolder(data_root=str(folder), **OPTIONS)
    assert sorted(images.get_data_info(index)['img_path'] for index in range(len(images))) == wanted
    assert all(images[index]['img'].shape == (8, 9, 3) for index in range(len(images))) and images.unreadable == 0
    labelled = open_images(folder, SMALL)
    assert sorted(str(folder / name) for name in labelled.names) == wanted
    assert all(labelled[index].shape == (3, 8, 8) for index in range(len(labelled)))
    classes = {parent for parent, _ in names}
    assert len(draw_share(folder, len(classes) / len(names), 0)) == len(classes)  # one of each
