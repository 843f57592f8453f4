"""Tar shards: any image in its turn, a resumed run goes on with the very next, and damaged files say what they are."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, FUNCTIONS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from mkd_plugin import get_config
from mkd_plugin.datasets import ShardDataset
from mkd_plugin.datasets.shards import members as members_module
from mkd_plugin.datasets.shards.members import (
    TarMemberBackend,
    index_path,
    key_of,
    member_uri,
    parse_uri,
    read_index,
    scan,
    write_index,
)
from mkd_plugin.engine.exact_resume import make_exact
from mkd_plugin.preflight.checks import missing_files


def picture(number: int, form: str = 'PNG') -> bytes:
    """A small picture of one colour, which tells its number."""
    buffer = io.BytesIO()
    Image.new('RGB', (12 + number, 10), (number, 2 * number, 0)).save(buffer, form)
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes], **options) -> Path:
    with tarfile.open(path, 'w', **options) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three tar files of four images each, with labels."""
    folder = tmp_path / 'shards'
    folder.mkdir()
    for shard in range(3):
        numbers = range(4 * shard, 4 * shard + 4)
        members = {}
        for number in numbers:
            members[f'{number:03d}.png'] = picture(number)
            members[f'{number:03d}.cls'] = str(number % 5).encode()
        pack(folder / f'part-{shard}.tar', members)
    return folder


LOAD = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]  # the hosts' own loader


def number_of(sample) -> int:
    return int(sample['inputs'][2, 0, 0])  # BGR


def test_shard_dataset__has_every_image_in_order(shards):
    data = ShardDataset(data_root=str(shards), pipeline=LOAD)
    assert len(data) == 12 and [number_of(data[i]) for i in range(12)] == list(range(12))
    assert 'gt_label' not in data[3]['data_samples']
    assert data[5]['data_samples'].img_path.endswith('/005.png') and 'part-1.tar@' in data[5]['data_samples'].img_path
    assert len(ShardDataset(data_root=str(shards), shards='*-1.tar')) == 4
    assert len(ShardDataset(data_root=str(shards), indices=5)) == 5


def test_shard_dataset__labels_of_cls_and_json(shards, tmp_path):
    data = ShardDataset(data_root=str(shards), with_label=True, pipeline=LOAD)
    assert [int(data[i]['data_samples'].gt_label) for i in range(12)] == [i % 5 for i in range(12)]
    (shards / 'classes.txt').write_text('a\nb\nc\nd\ne\n')
    assert ShardDataset(data_root=str(shards), with_label=True).CLASSES == ('a', 'b', 'c', 'd', 'e')
    (shards / 'classes.txt').write_text('a\nb\n')
    with pytest.raises(ValueError, match=r'6 of 12 images have no class number.*part-0\.tar: 002\.png'):
        ShardDataset(data_root=str(shards), with_label=True)
    folder = tmp_path / 'json'
    folder.mkdir()
    found = {'a': '3', 'b': '{"label": 2, "caption": "x"}', 'c': '{"cls": 1}', 'd': '[1]', 'e': '{"label": "cat"}'}
    members = {f'x/{key}.png': picture(1) for key in found} | {
        f'x/{key}.json': text.encode() for key, text in found.items()
    }
    pack(folder / 'a.tar', members)
    assert scan(folder / 'a.tar').labels == {'x/a': 3, 'x/b': 2, 'x/c': 1}
    with pytest.raises(ValueError, match=r'2 of 5 images have no class number.*x/d\.png'):
        ShardDataset(data_root=str(folder), with_label=True)
    assert len(ShardDataset(data_root=str(folder))) == 5


def test_shard_dataset__takes_any_tar(tmp_path):
    """Folders, links, foreign files, macOS's companions, long names, a name twice (the later counts), no labels."""
    long = 'y' * 120 + '/' + 'z' * 140 + '.2024.05.png'
    with tarfile.open(tmp_path / 'any.tar', 'w', format=tarfile.PAX_FORMAT) as archive:
        for name, content, kind in (
            ('deep', b'', tarfile.DIRTYPE),
            ('deep/one.PNG', picture(1), tarfile.REGTYPE),
            ('deep/._one.PNG', b'no image', tarfile.REGTYPE),
            ('deep/link.png', b'', tarfile.SYMTYPE),
            ('notes.txt', b'hello', tarfile.REGTYPE),
            ('two.png', picture(99), tarfile.REGTYPE),
            (long, picture(3), tarfile.REGTYPE),
            ('two.png', picture(2), tarfile.REGTYPE),
            ('http://odd.png', picture(4), tarfile.REGTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), 'deep/one.PNG'
            archive.addfile(member, io.BytesIO(content))
    data = ShardDataset(data_root=str(tmp_path), pipeline=LOAD)
    assert [number_of(data[i]) for i in range(len(data))] == [1, 3, 2, 4]
    with pytest.raises(ValueError, match=r'have no images \(\.jpg\)'):
        ShardDataset(data_root=str(tmp_path), extensions=['.JPG'])


def test_key_of__is_webdatasets():
    assert key_of('a/b.c/d.seg.png') == 'a/b.c/d' and key_of('x.jpg') == 'x' and key_of('a/x') == 'a/x'


def test_index__is_kept_and_made_anew_only_when_the_tar_changed(shards, monkeypatch):
    scanned = []
    monkeypatch.setattr(
        'mkd_plugin.datasets.shards.dataset.scan', lambda tar, **_: scanned.append(tar.name) or scan(tar)
    )
    first = [info['img_path'] for info in infos(shards)]
    assert scanned == ['part-0.tar', 'part-1.tar', 'part-2.tar']
    assert sorted(path.name for path in shards.iterdir() if 'index' in path.name or '.tmp' in path.name) == [
        f'part-{number}.tar.index.json' for number in range(3)
    ]
    scanned.clear()
    assert [info['img_path'] for info in infos(shards)] == first and not scanned
    pack(shards / 'part-1.tar', {'new.png': picture(7)})
    index_path(shards / 'part-2.tar').write_text('{"format": 1, "members": [["000.png", 0, 99999999]]')
    assert len(infos(shards)) == 9 and scanned == ['part-1.tar', 'part-2.tar']
    scanned.clear()
    stored = json.loads(index_path(shards / 'part-0.tar').read_text())
    stored['members'][0][2] = 10**9  # beyond the file
    index_path(shards / 'part-0.tar').write_text(json.dumps(stored))
    assert len(infos(shards)) == 9 and scanned == ['part-0.tar']


def infos(folder) -> list[dict]:
    data = ShardDataset(data_root=str(folder))
    return [data.get_data_info(number) for number in range(len(data))]


def test_index__in_memory_if_it_cannot_be_kept(shards, monkeypatch):
    """As root, who may write anywhere, the tests cannot have a read-only folder."""
    said = []

    def refuse(half, whole):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(members_module.os, 'replace', refuse)
    monkeypatch.setattr('mkd_plugin.datasets.shards.dataset.print_log', lambda message, *_, **__: said.append(message))
    data = ShardDataset(data_root=str(shards), pipeline=LOAD)
    assert number_of(data[11]) == 11
    assert len(said) == 2 and 'Read-only' in said[1] and 'stays in memory' in said[1]
    assert not [path for path in shards.iterdir() if path.suffix != '.tar']


def header(name: str, size: bytes, kind: bytes = b'0') -> bytes:
    """A tar header with any size field."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[124:136], block[156:157], block[257:263] = (
        b'0000644\0',
        size.ljust(12, b'\0'),
        kind,
        b'ustar\0',
    )
    block[263:265], block[148:156] = b'00', b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


def binary(size: int) -> bytes:
    """A size beyond octal digits, GNU's way; negative ones are possible."""
    return (b'\xff' if size < 0 else b'\x80') + struct.pack('>3xq', size)


END = bytes(1024)
ONE = header('a.png', b'%011o' % len(picture(1))) + picture(1).ljust(512, b'\0')
HOSTILE = {
    'nothing': (b'', 'empty'),
    'no tar': (b'hello world' * 100, ''),
    'cut in a header': (ONE + ONE[:100], ''),
    'cut in a picture': (ONE + ONE[:600], ''),
    'cut between members': (ONE, 'mark that closes a tar'),
    'garbage between members': (ONE + b'\x01' * 512 + ONE + END, 'no header of a member'),
    'negative size': (ONE + header('b.png', binary(-1536)) + END, ''),
    'more than the file': (ONE + header('b.png', b'%011o' % 10**9) + END, ''),
    'more than any file': (ONE + header('b.png', binary(2**62)) + END, ''),
    'endless name': (header('x', binary(2**62), b'L') + END, ''),
    'negative extended header': (ONE + header('x', binary(-512), b'x') + ONE + END, ''),
    'chain of long names': (header('x', b'%011o' % 0, b'L') * 3000 + END, ''),
    'sparse': (header('a.png', b'%011o' % 0, b'S') + END, 'sparse'),
}


@pytest.mark.parametrize('what', HOSTILE)
def test_scan__damaged_and_hostile_files_are_refused(tmp_path, what):
    content, message = HOSTILE[what]
    (tmp_path / 'bad.tar').write_bytes(content)
    with pytest.raises(ValueError, match=rf'bad\.tar is no whole tar file: .*{message}.*Copy it or make it again'):
        ShardDataset(data_root=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['bad.tar']


def test_scan__what_the_hostile_files_are_made_of_is_a_good_tar(tmp_path):
    (tmp_path / 'good.tar').write_bytes(ONE + END)
    assert [member[0] for member in scan(tmp_path / 'good.tar').members] == ['a.png']


def test_scan__compressed_is_named(tmp_path):
    whole = pack(tmp_path / 'x.tar', {'a.png': picture(1)}).read_bytes()
    (tmp_path / 'x.tar').write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match='compressed with gzip: unpack it'):
        scan(tmp_path / 'x.tar')


def test_shard_dataset__folder_that_is_none(tmp_path):
    with pytest.raises(ValueError, match='nowhere/? does not exist.*data_root=DIR'):
        ShardDataset(data_root=str(tmp_path / 'nowhere'))
    with pytest.raises(ValueError, match=r'has no \*\.tar.*ImageFolder'):
        ShardDataset(data_root=str(tmp_path))
    with pytest.raises(ValueError, match='give the folder of the images or shards'):
        ShardDataset(data_root='')


def test_missing_files__says_that_shards_are_expected():
    cfg = get_config('dbot/dbot_vit-base-p16_8xb512-2x800e_shards')
    (missing,) = missing_files(cfg)
    assert (missing.path, missing.expected) == ('data/shards/', 'a folder of tar shards')


ANY = [dict(type='mkd_plugin.LoadAnyImage'), dict(type='PackInputs')]


def test_shard_dataset__unreadable_images_are_replaced_and_counted(shards):
    members = {'a.png': picture(20), 'b.png': picture(21)[:40], 'c.png': picture(22)}
    pack(shards / 'part-3.tar', members)
    data = ShardDataset(data_root=str(shards), pipeline=ANY)
    assert [number_of(data[i]) for i in (12, 13, 14)] == [20, 22, 22] and data.unreadable == 1
    strict = ShardDataset(data_root=str(shards), pipeline=ANY, max_unreadable=0)
    with pytest.raises(ValueError, match=r'1 images of .* cannot be read.*part-3\.tar@\d+\+\d+/b\.png'):
        strict[13]


def test_shard_dataset__tar_cut_off_after_it_was_indexed(shards):
    data = ShardDataset(data_root=str(shards), pipeline=ANY)
    tar = shards / 'part-2.tar'
    os.truncate(tar, scan(tar).members[-2][1] + 20)
    uri = data.get_data_info(11)['img_path']
    with pytest.raises(OSError, match=r'part-2\.tar ends before byte .* cut off after it was indexed'):
        get(uri)
    assert number_of(data[11]) == 0 and data.unreadable == 1  # the next after the last is the first


def test_backend__keeps_a_limited_number_of_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, 'MOST_OPEN', 2)
    backend, before = TarMemberBackend(), len(os.listdir('/proc/self/fd'))
    tars = [tmp_path / f'{number}.tar' for number in range(5)]
    for number, tar in enumerate(tars):
        tar.write_bytes(b'abc%d' % number)
    for _ in range(2):
        assert [backend.get(member_uri(tar, 'x', 2, 2)) for tar in tars] == [b'c%d' % number for number in range(5)]
        assert backend.get_text(member_uri(tars[4], 'x', 0, 3)) == 'abc'
    assert len(os.listdir('/proc/self/fd')) == before + 2


def test_parse_uri__is_the_inverse_also_for_odd_names():
    assert parse_uri(member_uri('/x/a.tar@b/c.tar', 'd.tar@1+2/e.png', 3, 4)) == ('/x/a.tar@b/c.tar', 3, 4)
    for wrong in ('tar://x', '/x/a.tar@1+2/b', 'tar:///x/a.tar@-1+2/b', 'tar:///x/a.tar@1/b'):
        with pytest.raises(ValueError, match=r'tar://FILE\.tar@OFFSET\+SIZE/NAME'):
            parse_uri(wrong)


def test_write_index__round_trip(tmp_path):
    tar = pack(tmp_path / 'x.tar', {'ä/ü.png': picture(1), 'ä/ü.cls': b'007'})
    write_index(tar, scan(tar))
    assert read_index(tar) == scan(tar) and read_index(tar).labels == {'ä/ü': 7}


def exact_loader(shards, position, workers):
    """The shipped config's own data set, collation and pipeline, under the run's exact order."""
    init_default_scope('mmpretrain')
    cfg = get_config('dbot/dbot_vit-base-p16_8xb512-2x800e_shards').train_dataloader
    cfg.dataset.data_root = str(shards)
    data, collate = DATASETS.build(cfg.dataset), FUNCTIONS.get(cfg.collate_fn.type)
    loader = DataLoader(data, batch_size=3, sampler=RandomSampler(data), num_workers=workers, collate_fn=collate)
    return make_exact(loader, seed=5, position=position, endless=True)


@pytest.mark.parametrize('workers', [0, 2])
def test_shards__batches_after_a_resume_are_those_of_a_run_that_went_on(shards, workers):
    def batches(start, count):
        iterator = iter(exact_loader(shards, lambda: divmod(start, 4), workers if start else 0))
        return [next(iterator) for _ in range(count)]

    whole = batches(0, 12)
    for start in (1, 4, 7):
        for resumed, wanted in zip(batches(start, 4), whole[start:], strict=False):
            assert torch.equal(resumed['inputs'].pixels, wanted['inputs'].pixels)
            assert torch.equal(resumed['inputs'].table_B4, wanted['inputs'].table_B4)
            assert resumed['inputs'][2:] == wanted['inputs'][2:]
            paths = [[sample.img_path for sample in batch['data_samples']] for batch in (resumed, wanted)]
            assert paths[0] == paths[1]
    seen = [sample.img_path for batch in whole[:4] for sample in batch['data_samples']]
    assert len(set(seen)) == 12 and seen != [
        sample.img_path for batch in whole[4:8] for sample in batch['data_samples']
    ]


def training(shards, work_dir, **options):
    """The shipped recipe, tiny: two steps an epoch, two stages of an epoch each."""
    cfg = get_config('dbot/dbot_vit-base-p16_8xb512-2x800e_shards')
    arch = dict(width=16, depth=2, num_heads=2)
    cfg.model.backbone.update(arch=arch, img_size=32)
    cfg.model.objectives.feature.head.update(depth=1, width=16, num_heads=2)
    cfg.train_dataloader.update(batch_size=4, num_workers=2)
    cfg.train_dataloader.dataset.update(data_root=str(shards), indices=8)
    cfg.train_dataloader.dataset.pipeline[1].scale = 32
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    cfg.param_scheduler, cfg.auto_scale_lr = [], None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2)
    cfg.work_dir, cfg.visualizer, cfg.log_level = str(work_dir), None, 'ERROR'
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    cfg.launcher = 'none'
    cfg.merge_from_dict(options)
    for name in ('curves', 'progress'):
        cfg.default_hooks.pop(name, None)
    return Runner.from_cfg(cfg)


class Stop(Exception):
    """Ends a run from inside."""


class Watch(Hook):
    """Notes the iterations that are run; ends the run after one of them."""

    priority = 'LOWEST'

    def __init__(self, stop: int | None = None):
        self.stop, self.seen = stop, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((runner.epoch, runner.iter))
        if runner.iter == self.stop:
            raise Stop


def test_shards__train_and_resume_to_the_same_weights(shards, tmp_path):
    """Stopped within the second epoch, and gone on with its second batch."""
    threads, watch = torch.get_num_threads(), Watch()
    torch.set_num_threads(1)
    try:
        whole = training(shards, tmp_path / 'whole')
        whole.train()
        stopped = training(shards, tmp_path / 'half')
        stopped.register_hook(Watch(stop=2))
        with pytest.raises(Stop):
            stopped.train()
        resumed = training(shards, tmp_path / 'half', resume=True)
        resumed.register_hook(watch)
        resumed.train()
    finally:
        torch.set_num_threads(threads)
    assert watch.seen == [(1, 3)]
    wanted = whole.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.model.state_dict().items())


def test_shards__train_from_a_storage_to_the_same_weights(shards, tmp_path, one_thread):
    """Two steps of the shipped recipe, from a folder, from fsspec's file:// and from its memory://."""
    memory, found = fsspec.filesystem('memory'), []
    memory.put(str(shards), '/training', recursive=True)
    sampler = dict(type='mkd_plugin.ShardSampler', lanes=2, window=4)
    for number, root in enumerate((shards, f'file://{shards}', 'memory://training')):
        options = {'train_dataloader.num_workers': number % 2, 'train_dataloader.persistent_workers': False}
        options |= {'train_dataloader.batch_size': 8, 'default_hooks.checkpoint.interval': 100}
        options |= {f'train_dataloader.sampler.{name}': value for name, value in sampler.items()}
        run = training(root, tmp_path / str(number), **options)
        run.train()
        assert run.iter == 2
        found.append(run.model.state_dict())
    memory.rm('/training', recursive=True)
    assert all(torch.equal(value, other[name]) for other in found[1:] for name, value in found[0].items())


def test_fine_tuning_pipeline__reads_shards_with_the_hosts_loader(shards):
    """Labels and mmpretrain's own transforms, nothing of ours but the data set."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(8, 8)), dict(type='PackInputs')]
    data = ShardDataset(data_root=str(shards), with_label=True, pipeline=[TRANSFORMS.build(step) for step in pipeline])
    sample = data[7]
    assert sample['inputs'].shape == (3, 8, 8) and int(sample['data_samples'].gt_label) == 2
    np.testing.assert_array_equal(sample['inputs'][:, 0, 0], [0, 14, 7])
