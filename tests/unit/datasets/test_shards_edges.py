"""Shards that claim what is not there, that hold masks, are compressed, or lie in folders with odd names."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from helpers.hostile_images import assert_cheap, behind_tem, cost_of, encode

from mkd_plugin import get_config
from mkd_plugin.datasets import ShardDataset
from mkd_plugin.datasets.shards.members import index_path, read_index, scan, write_index
from mkd_plugin.datasets.shards.writing import MANIFEST, Options, verify_shards, write_shards

LOAD = [dict(type='mkd_plugin.LoadAnyImage'), dict(type='mmpretrain.PackInputs')]


def pack(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What the data set reports."""
    lines: list[str] = []
    for module in ('shards.dataset', 'folder'):
        monkeypatch.setattr(f'mkd_plugin.datasets.{module}.print_log', lambda text, *_, **__: lines.append(text))
    return lines


@pytest.mark.parametrize(
    'member, content',
    [
        ('a.cls', b'1000000000000000000'),
        ('a.cls', b'1000000'),
        ('a.cls', b'9' * 100_000),
        ('a.cls', b'-1'),
        ('a.cls', b'1.0'),
        ('a.cls', b'cat'),
        ('a.cls', b''),
        ('a.json', b'{"label": 1000000000000000000}'),
        ('a.json', b'{"label": -3}'),
        ('a.json', b'{"label": 1.5}'),
        ('a.json', b'{"label": true}'),
        ('a.json', b'{"label": NaN}'),
        ('a.json', b'{"label": [1]}'),
        ('a.json', b'[' * 100_000),
    ],
)
def test_labels__that_are_no_class_are_refused(tmp_path, member, content):
    pack(tmp_path / 'a.tar', {'a.png': encode('PNG'), member: content})
    for _ in range(2):  # scanned, and from the index
        with pytest.raises(ValueError, match=r'1 of 1 images have no class number.*a\.tar: a\.png'):
            ShardDataset(data_root=str(tmp_path), with_label=True)
    assert len(ShardDataset(data_root=str(tmp_path))) == 1


def damaged_indexes(index: dict) -> dict[str, str]:
    """Contents of an index that claims what is not there."""
    changes = {
        'a number of samples': dict(members=10**18),
        'a large offset': dict(members=[['a.png', 10**18, 1]]),
        'a large size': dict(members=[['a.png', 0, 10**18]]),
        'no name': dict(members=[[1]]),
        'infinity': dict(members=[['a.png', float('inf'), 1]]),
        'labels': dict(labels=[3]),
        'an infinite label': dict(labels={'a': float('inf')}),
        'another key': dict(more=1),
    }
    texts = {what: json.dumps({**index, **change}) for what, change in changes.items()}
    return texts | {'depth': '[' * 100_000, 'length': ' ' * 3_000_000 + json.dumps(index), 'no object': '[]'}


def test_index__that_claims_too_much_is_made_anew(tmp_path):
    tar = pack(tmp_path / 'a.tar', {'a.png': encode('PNG')})
    write_index(tar, scan(tar))
    good = index_path(tar).read_text()
    assert read_index(tar) == scan(tar)
    for what, text in damaged_indexes(json.loads(good)).items():
        index_path(tar).write_text(text)
        assert read_index(tar) is None, what
    assert len(ShardDataset(data_root=str(tmp_path))) == 1 and index_path(tar).read_text() == good
    index_path(tar).unlink()
    os.mkfifo(index_path(tar))
    assert read_index(tar) is None


def test_scan__only_regular_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe.tar')
    with pytest.raises(ValueError, match=r'pipe\.tar is no tar file, but a folder, pipe or device'):
        ShardDataset(data_root=str(tmp_path))
    (tmp_path / 'pipe.tar').unlink()
    (tmp_path / 'folder.tar').mkdir()
    with pytest.raises(ValueError, match=r'folder\.tar is no tar file'):
        ShardDataset(data_root=str(tmp_path))


def test_scan__headers_that_claim_gigabytes_cost_nothing(tmp_path):
    """Of a name, and of attributes, in a file that has as many bytes, all of them in a hole."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        member = tarfile.TarInfo('x')
        member.type, member.size = kind, 2**33 - 512
        with (tmp_path / 'large.tar').open('wb') as file:
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.truncate(2**34)
        message, seconds, grown = cost_of(lambda: scan(tmp_path / 'large.tar'))
        assert 'large.tar is no whole tar file: a header claims to have 8,589,934,' in message
        assert_cheap(0, seconds, grown)


def test_shards__absolute_names_and_links_reach_no_file(tmp_path):
    (tmp_path / 'secret.png').write_bytes(encode('PNG'))
    inside = encode('JPEG')
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        for name, kind in (
            (str(tmp_path / 'secret.png'), tarfile.REGTYPE),
            ('../../secret.png', tarfile.REGTYPE),
            ('hard.png', tarfile.LNKTYPE),
            ('soft.png', tarfile.SYMTYPE),
            ('device.png', tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / 'secret.png')
            member.size = len(inside) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(inside))
    data = ShardDataset(data_root=str(tmp_path), pipeline=LOAD)
    assert [data.get_data_info(number)['img_path'].partition('/' + 'a.tar@')[2] for number in range(len(data))] == [
        f'512+{len(inside)}/{tmp_path}/secret.png',
        f'{1024 + 512 * -(-len(inside) // 512)}+{len(inside)}/../../secret.png',
    ]
    assert data[0]['inputs'].shape == (3, 64, 64) and data.unreadable == 0


def test_shards__masks_beside_images(tmp_path, said):
    """They were samples without a word."""
    members = {f'{key}{ending}': encode('PNG') for key in 'abc' for ending in ('.png', '.seg.png')}
    pack(tmp_path / 'a.tar', {**members, 'd.png': encode('PNG')})
    assert len(ShardDataset(data_root=str(tmp_path))) == 7
    (warning,) = [line for line in said if 'key of another' in line]
    assert '3 of the 7 samples' in warning and 'a.png and a.seg.png in a.tar' in warning
    assert 'train_dataloader.dataset.exclude=.seg.png' in warning
    said.clear()
    for exclude in ('.seg.png', ['.SEG.png', '.mask.png']):
        data = ShardDataset(data_root=str(tmp_path), exclude=exclude)
        assert [data.get_data_info(number)['img_path'][-5:] for number in range(4)] == [
            f'{key}.png'[-5:] for key in 'abcd'
        ]
    assert len(ShardDataset(data_root=str(tmp_path), exclude='')) == 7
    assert get_config('dbot/dbot_vit-base-p16_8xb512-2x800e_shards').train_dataloader.dataset.exclude == []


def test_shards__compressed_files_are_named(tmp_path, said):
    whole = pack(tmp_path / 'a.tar', {'a.png': encode('PNG')}).read_bytes()
    (tmp_path / 'a.tar').unlink()
    (tmp_path / 'b.tar.gz').write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match=r'has no \*\.tar\. b\.tar\.gz is compressed: unpack it \(gzip -d,'):
        ShardDataset(data_root=str(tmp_path))
    (tmp_path / 'a.tar').write_bytes(lzma.compress(whole))
    with pytest.raises(ValueError, match=r'compressed with xz: unpack it \(xz -dc a\.tar > NEW\.tar\)'):
        ShardDataset(data_root=str(tmp_path))
    (tmp_path / 'a.tar').write_bytes(whole)
    assert len(ShardDataset(data_root=str(tmp_path))) == 1
    assert sum('1 files are left out. b.tar.gz is compressed' in line for line in said) == 2


@pytest.mark.parametrize('folder', ['a.tar@1+2', 'x@3+4/b.tar@5+6', 'plain.tar', 'ä b@c'])
def test_shards__folders_whose_names_look_like_addresses(tmp_path, folder):
    names = ['a.png', 'c.tar@7+8/d.png', 'e@9+1/f.png', '@.png']
    pack(tmp_path / folder / 's.tar', {name: encode('PNG') for name in names})
    data = ShardDataset(data_root=str(tmp_path / folder), pipeline=LOAD)
    assert [data[number]['inputs'].shape for number in range(4)] == [(3, 64, 64)] * 4 and data.unreadable == 0


def test_shards__hostile_images_are_replaced_and_counted(tmp_path, said):
    pack(tmp_path / 'a.tar', {'a.png': encode('PNG'), 'b.jpg': behind_tem()})
    data = ShardDataset(data_root=str(tmp_path), pipeline=LOAD)
    assert [data[number]['inputs'].shape for number in range(2)] == [(3, 64, 64)] * 2 and data.unreadable == 1
    assert any('b.jpg: ' in line for line in said)


def test_write_shards__only_its_own_files_are_cleaned_up(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.png').write_bytes(encode('PNG'))
    target = tmp_path / 'out'
    target.mkdir()
    ours, theirs = ('.shard-000000.tar.77.tmp', '.manifest.json.8.tmp'), ('.notes.tmp', '.a.tar.77.tmp', 'x.tmp')
    for name in (*ours, *theirs):
        (target / name).write_text('x')
    write_shards(tmp_path / 'images', target, options=Options())
    assert {path.name for path in target.glob('*.tmp')} | {path.name for path in target.glob('.*.tmp')} == set(theirs)
    (target / MANIFEST).write_text('{"options": {}')
    for action in (lambda: verify_shards(target), lambda: write_shards(tmp_path / 'images', target, options=Options())):
        with pytest.raises(ValueError, match=r'manifest\.json is damaged. Restore it, or delete'):
            action()
