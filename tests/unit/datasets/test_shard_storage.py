"""Shards on storage: the same images as from a folder, within a bounded cache, and every failure named."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import shutil
import tarfile
import tracemalloc
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from mmengine.fileio import get
from PIL import Image

from mkd_plugin.datasets import ShardDataset, ShardSampler
from mkd_plugin.datasets.shards import storage
from mkd_plugin.datasets.shards.listing import RECORD, ShardList
from mkd_plugin.datasets.shards.members import TarMemberBackend, index_path, member_uri, scan
from mkd_plugin.datasets.shards.storage import BlockCache, Remote, StorageError
from mkd_plugin.engine.dependencies import check_same_samples, inputs_of

LOAD = [dict(type='mkd_plugin.LoadAnyImage'), dict(type='mmpretrain.PackInputs')]


def pack(path: Path, images: range) -> Path:
    """A shard of PNGs of one colour each, with labels."""
    with tarfile.open(path, 'w') as archive:
        for number in images:
            buffer = io.BytesIO()
            Image.new('RGB', (12, 10), (number, 0, 0)).save(buffer, 'PNG')
            for name, content in (
                (f'{number:03d}.png', buffer.getvalue()),
                (f'{number:03d}.cls', b'%d' % (number % 3)),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three shards of four images."""
    (tmp_path / 'shards').mkdir()
    for shard in range(3):
        pack(tmp_path / f'shards/part-{shard}.tar', range(4 * shard, 4 * shard + 4))
    return tmp_path / 'shards'


@pytest.fixture(params=['file', 'memory'])
def address(folder, request):
    """The same shards as an address of a storage."""
    if request.param == 'file':
        yield f'file://{folder}'
        return
    memory = fsspec.filesystem('memory')
    memory.put(str(folder), '/bucket', recursive=True)
    yield 'memory://bucket'
    memory.rm('/bucket', recursive=True)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of blocks of 1 kB."""
    monkeypatch.setenv('MKD_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr(storage, 'BLOCK_BYTES', 1024)
    monkeypatch.setattr('mmengine.fileio.io.backend_instances', {})  # they would know the cache of an earlier test
    return tmp_path / 'cache'


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    for module in ('dataset', 'storage', 'listing'):
        monkeypatch.setattr(f'mkd_plugin.datasets.shards.{module}.print_log', lambda text, *_, **__: lines.append(text))
    return lines


class Sized:
    """What the sampler needs of a data set."""

    def __init__(self, data_list) -> None:
        self.data_list = data_list

    def __len__(self) -> int:
        return len(self.data_list)


def numbers(data: ShardDataset) -> list[int]:
    return [int(data[number]['inputs'][2, 0, 0]) for number in range(len(data))]


def blocks(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob('*.block'))


def test_shard_dataset__from_a_storage_is_that_from_a_folder(folder, address, cache):
    there, here = (ShardDataset(data_root=root, with_label=True, pipeline=LOAD) for root in (address, str(folder)))
    assert numbers(there) == numbers(here) == list(range(12))
    assert [there.get_data_info(n)['gt_label'] for n in range(12)] == [n % 3 for n in range(12)]
    assert there.data_list.digest == here.data_list.digest  # a run may go on from the other
    assert blocks(cache) > 0
    assert sorted(path.name for path in folder.iterdir() if 'index' in path.name) == [
        f'part-{shard}.tar.index.json' for shard in range(3)
    ]  # written by the folder's own data set
    assert len(ShardDataset(data_root=address, shards='*-1.tar')) == 4
    part = ShardDataset(data_root=address, with_label=True, pipeline=LOAD, indices=5)
    assert numbers(part) == [0, 1, 2, 3, 4] and part.data_list.starts.tolist() == [0, 4, 5]
    assert numbers(ShardDataset(data_root=address, pipeline=LOAD, indices=[7, 2])) == [7, 2]


def test_shard_dataset__uses_uploaded_indexes(folder, cache, monkeypatch):
    ShardDataset(data_root=str(folder))  # writes them
    monkeypatch.setattr('mkd_plugin.datasets.shards.dataset.scan', lambda *_, **__: pytest.fail('scanned'))
    memory = fsspec.filesystem('memory')
    memory.put(str(folder), '/uploaded', recursive=True)
    assert numbers(ShardDataset(data_root='memory://uploaded', pipeline=LOAD)) == list(range(12))
    memory.rm('/uploaded', recursive=True)


def test_shard_list__is_written_once_and_mapped(folder, cache, monkeypatch):
    first = ShardDataset(data_root=str(folder), pipeline=LOAD)
    monkeypatch.setattr('mkd_plugin.datasets.shards.dataset.read_index', lambda tar: pytest.fail('read again'))
    again = ShardDataset(data_root=str(folder), pipeline=LOAD)
    assert isinstance(again.data_list.records, np.memmap) and list(again.data_list) == list(first.data_list)
    copy = pickle.loads(pickle.dumps(again.data_list[2:7]))
    assert isinstance(copy.records, np.memmap) and list(copy) == list(first.data_list)[2:7]
    assert len(pickle.dumps(again.data_list)) < 2000


def test_shard_list__of_a_billion_images(tmp_path):
    """16 bytes and a name each on the disk; opening it and reading anywhere takes little memory."""
    shards, each = 100_000, 10_000
    with (tmp_path / 'images').open('wb') as file:
        file.truncate(shards * each * RECORD.itemsize)  # a hole: zeros that take no space
    records = np.memmap(tmp_path / 'images', RECORD, 'r+')
    records[-1] = (7, 500, 3, 5)
    names = np.frombuffer(b'x.jpg', np.uint8)
    first = list(range(0, shards * each + 1, each))
    tars = [Path(f'{number:06d}.tar') for number in range(shards)]
    tracemalloc.start()
    listed = ShardList(
        tars, dict(first_image=first, first_name=[0] * len(first), digest=''), records, names, with_label=True
    )
    assert len(listed) == 10**9
    assert listed[-1] == dict(img_path='tar://099999.tar@3584+500/x.jpg', gt_label=3)
    assert [listed[number]['img_path'][:16] for number in range(0, 10**9, 10**7)][7] == 'tar://007000.tar'
    assert listed.starts[[0, 1, -1]].tolist() == [0, 10_000, 10**9]
    sampler = ShardSampler(Sized(listed), seed=1)
    assert len(set(islice(iter(sampler), 10_000))) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20  # a byte for each image would be 15 times as much


def test_shard_list__stays_in_memory_if_it_cannot_be_kept(folder, tmp_path, monkeypatch, said):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('MKD_CACHE_DIR', str(tmp_path / 'file'))
    data = ShardDataset(data_root=str(folder), pipeline=LOAD)
    assert numbers(data) == list(range(12)) and not isinstance(data.data_list.records, np.memmap)
    assert list(pickle.loads(pickle.dumps(data.data_list))) == list(data.data_list)
    (warning,) = [line for line in said if 'cannot be kept' in line]
    assert 'every process holds it in memory. Set MKD_CACHE_DIR to a folder with space.' in warning


def test_shard_list__a_missing_shard_is_none_of_the_cache(folder, cache, said):
    (folder / 'part-9.tar').symlink_to(folder / 'gone.tar')
    with pytest.raises(FileNotFoundError, match='part-9.tar'):
        ShardDataset(data_root=str(folder), pipeline=LOAD).full_init()
    assert not any('cannot be kept' in text for text in said)


@pytest.mark.parametrize('content', ['\ufeffa\n\nb\nc\n', 'a\nb\nc'])
def test_shard_dataset__classes_of_a_storage_are_those_of_a_folder(folder, cache, content):
    (folder / 'classes.txt').write_text(content, encoding='utf-8')
    for root in (str(folder), f'file://{folder}'):
        assert ShardDataset(data_root=root, with_label=True, pipeline=LOAD).CLASSES == ('a', 'b', 'c')


def test_block_cache__is_bounded_and_drops_what_was_used_least_recently(folder, cache, monkeypatch):
    monkeypatch.setenv('MKD_CACHE_GB', str(4.2 * 1024 / 1e9))
    kept, file = BlockCache(), Remote(f'file://{folder}/part-0.tar')
    whole = (folder / 'part-0.tar').read_bytes()
    assert kept.read(file, 'v', 1000, 3100) == whole[1000:3100]  # blocks 0 to 3
    assert blocks(cache) == 4096
    os.utime(next(cache.glob('*-0.block')), (2e9, 2e9))
    kept.read(file, 'v', 5 * 1024, 5 * 1024 + 1)
    assert blocks(cache) <= 4.2 * 1024 and {path.stem[-1] for path in cache.glob('*.block')} == {'0', '2', '3', '5'}
    monkeypatch.setattr(Remote, 'read_range', lambda *_: pytest.fail('read from the storage'))
    assert kept.read(file, 'v', 10, 900) == whole[10:900]
    with pytest.raises(pytest.fail.Exception):
        kept.read(file, 'another version', 10, 900)


def read_everything(folder: str, queue) -> None:
    data = ShardDataset(data_root=folder, pipeline=LOAD)
    queue.put([numbers(data) for _ in range(3)])


def test_block_cache__of_processes_that_evict_each_others_blocks(folder, cache, monkeypatch):
    monkeypatch.setenv('MKD_CACHE_GB', str(6 * 1024 / 1e9))
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [context.Process(target=read_everything, args=(f'file://{folder}', queue)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [[list(range(12))] * 3] * 3
    assert blocks(cache) <= 6 * 1024 and not list(cache.glob('*.tmp'))


def test_block_cache__a_full_disk_is_said_once_and_leaves_nothing_half(folder, cache, monkeypatch, said):
    def full(path, content):
        with open(path, 'wb') as file:
            file.write(content[:100])
        raise OSError(28, 'No space left on device')

    data = ShardDataset(data_root=f'file://{folder}', pipeline=LOAD)
    monkeypatch.setattr(Path, 'write_bytes', full)
    backend = TarMemberBackend()
    for number in range(12):
        assert backend.get(data.get_data_info(number)['img_path']).startswith(b'\x89PNG')
    (warning,) = [line for line in said if 'cache cannot be used' in line]
    assert 'No space left on device' in warning and 'MKD_CACHE_DIR to another folder' in warning
    assert not list(cache.glob('*.block*'))


def test_block_cache__none_at_zero_gigabytes(folder, cache, monkeypatch):
    data = ShardDataset(data_root=f'file://{folder}', pipeline=LOAD)
    monkeypatch.setenv('MKD_CACHE_GB', '0')
    assert TarMemberBackend().get(data.get_data_info(3)['img_path']).startswith(b'\x89PNG') and blocks(cache) == 0
    for value in ('much', 'inf'):
        monkeypatch.setenv('MKD_CACHE_GB', value)
        with pytest.raises(ValueError, match=f'MKD_CACHE_GB={value}: give a number, such as 20'):
            BlockCache()


def test_block_cache__damaged_blocks_are_read_again(folder, cache):
    data, backend = ShardDataset(data_root=f'file://{folder}', pipeline=LOAD), TarMemberBackend()
    wanted = [backend.get(data.get_data_info(number)['img_path']) for number in range(12)]
    for path in cache.glob('*.block'):
        path.write_bytes(bytes(path.stat().st_size))  # as after a loss of power
    assert [backend.get(data.get_data_info(number)['img_path']) for number in range(12)] == wanted


def test_shard_dataset__shards_that_go_or_change_stop_the_run(folder, cache):
    """They are no unreadable images, which would be replaced and counted."""
    data = ShardDataset(data_root=f'file://{folder}', pipeline=LOAD)
    pack(folder / 'part-1.tar', range(100, 101))
    with pytest.raises(StorageError, match=r'part-1\.tar was changed after it was indexed: there is no image of'):
        data[6]
    assert len(ShardDataset(data_root=f'file://{folder}')) == 9  # the next start sees it
    (folder / 'part-2.tar').unlink()
    with pytest.raises(StorageError, match=r'part-2\.tar is missing: it was there when the run began'):
        data[10]
    assert data.unreadable == 0 and len(ShardDataset(data_root=f'file://{folder}')) == 5


class Denied(MemoryFileSystem):
    """A storage that answers with its own exceptions."""

    protocol = 'denied'

    def info(self, path, **options):
        raise RuntimeError('403 Forbidden')

    isdir = glob = info


def test_shard_dataset__addresses_that_cannot_be_read(folder, cache):
    fsspec.register_implementation('denied', Denied, clobber=True)
    with pytest.raises(
        ValueError, match=r'denied://x.* cannot be read: 403 Forbidden\. Check the address, its permissions'
    ):
        ShardDataset(data_root='denied://x')
    with pytest.raises(ValueError, match=r'nosuch://x.* cannot be read: Protocol not known: nosuch'):
        ShardDataset(data_root='nosuch://x')
    with pytest.raises(ValueError, match=r's3://x.*driver of this protocol is not installed.*s3fs'):
        ShardDataset(data_root='s3://x')
    with pytest.raises(ValueError, match=r'memory://nowhere/? does not exist'):
        ShardDataset(data_root='memory://nowhere')


def test_member_uri__of_an_address_is_one_that_mmengine_reads(folder, cache):
    tar = Remote(f'file://{folder}/part-0.tar')
    (name, offset, size) = scan(tar).members[0]
    uri = member_uri(tar, name, offset, size)
    assert (
        uri.startswith('tar://file%3A//') and uri.endswith(f'@{offset}+{size}/000.png') and len(uri.split('://')) == 2
    )
    assert get(uri) == (folder / 'part-0.tar').read_bytes()[offset : offset + size]
    assert index_path(tar).url == f'file://{folder}/part-0.tar.index.json'


class Shards(list):
    """A list of samples in shards of these sizes."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(range(sum(sizes)))
        self.starts = np.cumsum([0, *sizes])


def orders(ranks: int, monkeypatch, sizes: list[int], **options) -> list[list[int]]:
    """What each process takes."""
    found = []
    for rank in range(ranks):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, ranks))
        sampler = ShardSampler(Sized(Shards(sizes)), seed=3, round_up=False, **options)
        sampler.set_epoch(2)
        found.append(list(sampler))
    return found


@pytest.mark.parametrize('sizes', [[10] * 12, [1, 40, 7, 3, 30, 18, 21]])
@pytest.mark.parametrize('lanes, window', [(4, 3), (4, 100), (1, 8), (8, 1), (200, 5)])
def test_shard_sampler__is_one_order_of_all_images_for_any_number_of_processes(sizes, lanes, window, monkeypatch):
    (whole,) = orders(1, monkeypatch, sizes, lanes=lanes, window=window)
    assert sorted(whole) == list(range(120)) and whole != sorted(whole)
    for ranks in (2, 3, 4, 8):
        parts = orders(ranks, monkeypatch, sizes, lanes=lanes, window=window)
        assert [index for step in zip(*parts, strict=True) for index in step] == whole
    assert orders(1, monkeypatch, sizes, lanes=lanes, window=window, shuffle=False) == [list(range(120))]


def test_shard_sampler__a_process_reads_its_part_window_by_window(monkeypatch):
    """64 shards of 100 images on 4 processes: 16 shards each, and at any time those of its windows."""
    sizes = [100] * 64
    for ranks in (2, 4):
        parts = orders(ranks, monkeypatch, sizes, lanes=4, window=100)
        read = [{index // 100 for index in part} for part in parts]
        assert sum(map(len, read)) == 64
        for part in parts:
            lanes = 4 // ranks
            for start in range(0, len(part), lanes * 100):
                assert len({index // 100 for index in part[start : start + lanes * 100]}) == lanes
    other = ShardSampler(Sized(Shards(sizes)), seed=4, lanes=4, window=100)
    assert list(other) != parts[0]
    other.set_epoch(1)
    assert len({index // 100 for index in list(other)[:100]}) <= 4


def test_shard_sampler__refuses_what_has_no_shards():
    with pytest.raises(
        ValueError, match=r'ShardSampler needs a mkd_plugin\.ShardDataset, not list: use ElasticSampler'
    ):
        ShardSampler([1, 2])
    with pytest.raises(ValueError, match=r'lanes=0, window=3: give 1 or more'):
        ShardSampler(Sized(Shards([3])), lanes=0, window=3)


def check_on(rank: int, folder: Path, meeting: Path, queue) -> None:
    """What a process says about its list of samples."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
    loader = SimpleNamespace(dataset=ShardDataset(data_root=str(folder)))
    try:
        check_same_samples(inputs_of(SimpleNamespace(train_loop=SimpleNamespace(dataloader=loader))))
        queue.put('')
    except ValueError as error:
        queue.put(str(error))


def said_by_ranks(tmp_path: Path, folders: list[Path]) -> set[str]:
    context = multiprocessing.get_context('fork')
    queue, meeting = context.Queue(), tmp_path / f'meeting{folders[1].name}'
    processes = [context.Process(target=check_on, args=(*item, meeting, queue)) for item in enumerate(folders)]
    for process in processes:
        process.start()
    found = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    return found


def test_check_same_samples__copies_are_the_same_and_a_node_with_other_shards_is_named(folder, tmp_path, cache):
    copy = shutil.copytree(folder, tmp_path / 'copy')
    assert said_by_ranks(tmp_path, [folder, copy]) == {''}
    other = shutil.copytree(folder, tmp_path / 'other')
    (other / 'part-2.tar').unlink()
    (message,) = said_by_ranks(tmp_path, [folder, other])
    assert message.startswith(
        'The list of training samples differs between processes: rank 0 has 12, and 1 others have'
    )
    assert '(rank 1: 8). Give every node the same files under the same names.' in message
