"""make_shards: what goes in comes out, a stopped run is taken up, and damage is found."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mkd_cli import make_shards
from mkd_plugin.datasets import ShardDataset
from mkd_plugin.datasets.loading import decode, read_image
from mkd_plugin.datasets.shards import writing
from mkd_plugin.datasets.shards.writing import Options, verify_shards, write_shards

PHOTO = Image.fromarray(load_sample_images().images[0])


@pytest.fixture
def source(tmp_path) -> Path:
    """Seven images in two classes, nested, one of them no image."""
    folder = tmp_path / 'images'
    for number, name in enumerate(
        ('cat/a.jpg', 'cat/deep/b.png', 'cat/c.JPG', 'dog/d.jpg', 'dog/e.jpg', 'dog/f.png', 'dog/g.jpg')
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PHOTO.resize((90 + 10 * number, 60 + 10 * number)).save(path)
    (folder / 'dog/e.jpg').write_bytes(b'no image')
    (folder / 'notes.txt').write_text('hello')
    return folder


OPTIONS = Options(size=80, shard_size=3, labels=True)


def members(target: Path) -> dict[str, bytes]:
    found = {}
    for tar in sorted(target.glob('*.tar')):
        with tarfile.open(tar) as archive:
            found |= {f'{tar.name}/{member.name}': archive.extractfile(member).read() for member in archive}
    return found


def test_write_shards__is_webdatasets_form(source, tmp_path):
    manifest = write_shards(source, tmp_path / 'out', options=OPTIONS)
    found = members(tmp_path / 'out')
    assert list(found) == [
        *('shard-000000.tar/000000000.jpg', 'shard-000000.tar/000000000.cls', 'shard-000000.tar/000000001.jpg'),
        *('shard-000000.tar/000000001.cls', 'shard-000000.tar/000000002.png', 'shard-000000.tar/000000002.cls'),
        *('shard-000001.tar/000000003.jpg', 'shard-000001.tar/000000003.cls', 'shard-000001.tar/000000005.jpg'),
        *('shard-000001.tar/000000005.cls', 'shard-000002.tar/000000006.jpg', 'shard-000002.tar/000000006.cls'),
    ]  # sorted by path: a, c, deep/b; d, (e), f; g
    assert [found[name] for name in found if name.endswith('cls')] == [b'0', b'0', b'0', b'1', b'1', b'1']
    assert (tmp_path / 'out/classes.txt').read_text() == 'cat\ndog\n'
    assert found['shard-000000.tar/000000000.jpg'] == (source / 'cat/a.jpg').read_bytes()  # 90 × 60: not enlarged
    assert found['shard-000000.tar/000000002.png'] == (source / 'cat/deep/b.png').read_bytes()
    sizes = [Image.open(io.BytesIO(content)).size for name, content in found.items() if not name.endswith('cls')]
    assert sizes == [(90, 60), (110, 80), (100, 70), (107, 80), (102, 80), (100, 80)]  # 120 × 90, 140 × 110, 150 × 120
    assert (manifest['images'], manifest['shards']['shard-000001.tar']['images']) == (7, 2)
    ((path, why),) = manifest['shards']['shard-000001.tar']['skipped']
    assert path == 'dog/e.jpg' and 'cannot identify' in why
    assert verify_shards(tmp_path / 'out') == []
    data = ShardDataset(data_root=str(tmp_path / 'out'), with_label=True)
    assert [data.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 0, 1, 1, 1] and data.CLASSES == (
        'cat',
        'dog',
    )


def test_write_shards__shrinks_as_pillow_does_at_the_given_quality(source, tmp_path):
    write_shards(source, tmp_path / 'out', options=OPTIONS)
    wanted = io.BytesIO()
    with Image.open(source / 'dog/f.png') as image:
        image.resize((102, 80), Image.Resampling.BICUBIC).save(wanted, 'JPEG', quality=90)
    assert members(tmp_path / 'out')['shard-000001.tar/000000005.jpg'] == wanted.getvalue()


def test_write_shards__files_as_they_are_without_size(source, tmp_path):
    write_shards(source, tmp_path / 'out', options=Options())
    found = list(members(tmp_path / 'out').values())
    paths = ('cat/a.jpg', 'cat/c.JPG', 'cat/deep/b.png', 'dog/d.jpg', 'dog/f.png', 'dog/g.jpg')
    assert found == [(source / path).read_bytes() for path in paths]
    assert not (tmp_path / 'out/classes.txt').exists()


def test_write_shards__raw_pixels_are_those_of_the_images(source, tmp_path):
    write_shards(source, tmp_path / 'out', options=Options(raw=True))
    assert {name[-4:] for name in members(tmp_path / 'out')} == {'.ppm'} and verify_shards(tmp_path / 'out') == []
    data = ShardDataset(data_root=str(tmp_path / 'out'), pipeline=[dict(type='mkd_plugin.LoadAnyImage')])
    for number, path in enumerate(('cat/a.jpg', 'cat/c.JPG', 'cat/deep/b.png', 'dog/d.jpg', 'dog/f.png', 'dog/g.jpg')):
        np.testing.assert_array_equal(data[number]['img'], read_image(str(source / path), order='bgr'))
    write_shards(source, tmp_path / 'small', options=Options(size=80, raw=True))
    with Image.open(source / 'dog/f.png') as image:
        wanted = np.asarray(image.resize((102, 80), Image.Resampling.BICUBIC))
    (content,) = [content for name, content in members(tmp_path / 'small').items() if '000000005' in name]
    np.testing.assert_array_equal(decode(content), wanted)


def test_write_shards__goes_on_with_a_manifest_from_before_raw(source, tmp_path):
    write_shards(source, tmp_path / 'out', options=OPTIONS)
    manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
    del manifest['options']['raw']
    (tmp_path / 'out/manifest.json').write_text(json.dumps(manifest))
    (tmp_path / 'out/shard-000002.tar').unlink()
    write_shards(source, tmp_path / 'out', options=OPTIONS)
    assert verify_shards(tmp_path / 'out') == []


def shards_of(target: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(target.glob('*.tar'))}


def test_write_shards__same_bytes_from_any_number_of_workers_and_any_time(source, tmp_path):
    write_shards(source, tmp_path / 'one', options=OPTIONS)
    write_shards(source, tmp_path / 'two', options=OPTIONS, workers=2)
    for path in source.rglob('*.*'):
        os.utime(path, (1, 1))
    write_shards(source, tmp_path / 'old', options=OPTIONS)
    assert shards_of(tmp_path / 'one') == shards_of(tmp_path / 'two') == shards_of(tmp_path / 'old')


def test_write_shards__a_stopped_run_is_taken_up(source, tmp_path, monkeypatch):
    """Stopped amid the second shard: the first is not touched again, of the second nothing is there."""
    write_shards(source, tmp_path / 'whole', options=OPTIONS)
    encode, done = writing.encode, []

    def stopping(image, **options):
        done.append(image.path)
        if len(done) == 6:
            raise KeyboardInterrupt
        return encode(image, **options)

    target = tmp_path / 'out'
    monkeypatch.setattr(writing, 'encode', stopping)
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, target, options=OPTIONS)
    assert list(shards_of(target)) == ['shard-000000.tar']
    before, begun = (target / 'shard-000000.tar').stat().st_mtime_ns, []
    write_shards(source, target, options=OPTIONS, begin=lambda *numbers: begun.append(numbers))
    assert begun == [(3, 7)] and len(done) == 6 + 4
    assert (target / 'shard-000000.tar').stat().st_mtime_ns == before
    assert shards_of(target) == shards_of(tmp_path / 'whole') and verify_shards(target) == []
    (target / 'shard-000001.tar').unlink()  # lost: made again
    write_shards(source, target, options=OPTIONS)
    assert shards_of(target) == shards_of(tmp_path / 'whole')


def test_write_shards__other_images_or_options_are_refused(source, tmp_path):
    target = tmp_path / 'out'
    write_shards(source, target, options=OPTIONS)
    with pytest.raises(ValueError, match=r"other images or options: \{'size': 80.*size=81"):
        write_shards(source, target, options=Options(size=81, shard_size=3, labels=True))
    PHOTO.resize((8, 8)).save(source / 'cat/new.png')
    with pytest.raises(ValueError, match=r'1 entries differ, the first is \["cat/new\.png"'):
        write_shards(source, target, options=OPTIONS)
    (source / 'cat/new.png').unlink()
    os.utime(source / 'dog/g.jpg', (1, 1))
    with pytest.raises(ValueError, match=r'2 entries differ, the first is \["dog/g\.jpg"'):
        write_shards(source, target, options=OPTIONS)


def test_write_shards__an_image_that_changes_meanwhile_stops_it(source, tmp_path, monkeypatch):
    listed = writing.find_sources(source)
    os.utime(source / 'cat/a.jpg', (1, 1))
    monkeypatch.setattr(writing, 'find_sources', lambda folder: listed)
    with pytest.raises(ValueError, match=r'cat/a\.jpg was changed while the shards were made'):
        write_shards(source, tmp_path / 'out', options=OPTIONS)
    assert not shards_of(tmp_path / 'out')


def test_write_shards__refuses_what_is_no_source_or_target(source, tmp_path):
    with pytest.raises(ValueError, match='is no folder'):
        write_shards(tmp_path / 'nowhere', tmp_path / 'out', options=OPTIONS)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='has no images'):
        write_shards(tmp_path / 'empty', tmp_path / 'out', options=OPTIONS)
    PHOTO.resize((8, 8)).save(source / 'top.png')
    with pytest.raises(ValueError, match=r'--labels: 1 images are in no folder of a class, the first is top\.png'):
        write_shards(source, tmp_path / 'out', options=OPTIONS)
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken/mine.tar').touch()
    with pytest.raises(ValueError, match=r'tar files of another origin, such as mine\.tar'):
        write_shards(source, tmp_path / 'taken', options=Options())
    for wrong in (dict(size=-1), dict(quality=0), dict(shard_size=0)):
        with pytest.raises(ValueError, match='quality 1 … 100'):
            Options(**wrong)


def test_verify_shards__finds_what_is_wrong(source, tmp_path):
    target = tmp_path / 'out'
    write_shards(source, target, options=OPTIONS)
    tar = target / 'shard-000000.tar'
    content = bytearray(tar.read_bytes())
    place = 512 + 400  # inside the first picture
    content[place] ^= 255
    tar.write_bytes(content)
    os.truncate(target / 'shard-000001.tar', 3000)
    (target / 'shard-000002.tar').unlink()
    found = verify_shards(target)
    assert any(problem == 'shard-000000.tar: its content is not what was written (SHA-256)' for problem in found)
    assert any('shard-000001.tar is no whole tar file' in problem for problem in found)
    assert any('shard-000002.tar' in problem and 'No such file' in problem for problem in found)
    manifest = json.loads((target / 'manifest.json').read_text())
    del manifest['shards']['shard-000002.tar']
    (target / 'manifest.json').write_text(json.dumps(manifest))
    assert any('6 of 7 images are in shards' in problem for problem in verify_shards(target))
    with pytest.raises(ValueError, match=r'has no manifest\.json'):
        verify_shards(source)


def test_main__writes_verifies_and_says_so(source, tmp_path, capsys):
    target = tmp_path / 'out'
    arguments = [
        str(source),
        str(target),
        '--size',
        '80',
        '--shard-size',
        '3',
        '--labels',
        '--workers',
        '1',
        '--verify',
    ]
    assert make_shards.main(arguments) == 0
    said = ' '.join(capsys.readouterr().out.split())
    assert '6 images in 3 shards' in said and '1 skipped, verified' in said and 'skipped dog/e.jpg' in said
    with (target / 'shard-000000.tar').open('r+b') as file:
        file.seek(512 + 400)
        file.write(bytes(20))
    assert make_shards.main(arguments) == 1
    assert 'not what was written' in capsys.readouterr().out
    assert make_shards.main([*arguments[:2], '--size', '9']) == 2
    assert 'other images or options' in capsys.readouterr().err


def test_encode__reads_what_every_loader_of_ours_reads(source):
    """16-bit grey is not white, as Pillow's own conversion has it."""
    grey = np.full((200, 300), 128 * 257, np.uint16)
    Image.fromarray(grey).save(source / 'cat/grey.png')
    (found,) = [entry for entry in writing.find_sources(source) if entry.path == 'cat/grey.png']
    encoded = writing.encode(found, folder=source, options=Options(size=100))
    assert (
        encoded.ending == '.jpg'
        and abs(np.asarray(Image.open(io.BytesIO(encoded.content))).astype(int) - 128).max() < 2
    )
