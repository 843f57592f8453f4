"""What a run depends on is recorded, and changes are refused or named when it is resumed."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.labelled_files import write_images
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmpretrain.datasets import CustomDataset
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder as TorchFolder

from mkd_plugin.checkpoint import read_checkpoint
from mkd_plugin.datasets import ImageFolder
from mkd_plugin.engine import dependencies
from mkd_plugin.engine.dependencies import (
    add_samples,
    changed_classes,
    changed_samples,
    compare_with_checkpoint,
    inputs_of,
)
from mkd_plugin.engine.exact_resume import SeededDataset


def digest_of(dataset) -> str | None:
    digest = hashlib.sha256()
    return digest.hexdigest() if add_samples(dataset, digest) else None


def listed(names: str, *, labels: int = 0, **options) -> BaseDataset:
    class Listed(BaseDataset):
        def load_data_list(self):
            return [dict(img_path=name, gt_label=labels) for name in names]

    return Listed(metainfo=dict(classes=['a']), **options)


@pytest.fixture
def no_collection(monkeypatch):
    """mmengine's data sets collect garbage when they are built: 0.1 s each."""
    monkeypatch.setattr('gc.collect', lambda: 0)


@pytest.mark.parametrize('serialized', [True, False])
def test_add_samples__depends_on_names_labels_and_order(serialized, no_collection):
    options = dict(serialize_data=serialized)
    found = {digest_of(listed(names, **options)) for names in ('abc', 'acb', 'ab')}
    found |= {digest_of(listed('abc', labels=1, **options))}
    assert len(found) == 4 and None not in found
    assert digest_of(listed('abc', **options)) in found and digest_of(listed('abc', indices=2, **options)) in found


def test_add_samples__of_wrappers_and_of_other_libraries(tmp_path, no_collection):
    a, b = listed('abc'), listed('abd')
    sets = [ConcatDataset([a, b]), ConcatDataset([b, a]), RepeatDataset(a, 2), RepeatDataset(a, 3), RepeatDataset(b, 2)]
    sets += [Subset(a, [0, 1]), Subset(a, [1, 0]), ClassBalancedDataset(Balanced(), 0.9)]
    images = write_images(tmp_path, 'train')
    sets += [ImageFolder(data_root=str(images)), CustomDataset(data_root=str(images)), TorchFolder(str(images))]
    found = [digest_of(dataset) for dataset in sets]
    assert len({*found, digest_of(a)}) == len(sets) + 1 and None not in found
    assert digest_of(SeededDataset(a, seed=1)) == digest_of(a)  # as it is during a run
    assert digest_of(torch.utils.data.TensorDataset(torch.zeros(2))) is None


class Balanced(BaseDataset):
    """Two classes, one of them rare."""

    def __init__(self):
        super().__init__(metainfo=dict(classes=['a', 'b']))

    def load_data_list(self):
        return [dict(gt_label=int(number == 0)) for number in range(4)]

    def get_cat_ids(self, index):
        return [self.get_data_info(index)['gt_label']]


def test_add_samples__of_shards_depends_on_their_index(tmp_path):
    import tarfile

    from mkd_plugin.datasets import ShardDataset

    images = sorted(write_images(tmp_path, 'train').rglob('*.png'))
    found = []
    for chosen in (images, images[::-1], images[:-1]):
        with tarfile.open(tmp_path / '0.tar', 'w') as tar:
            for number, image in enumerate(chosen):
                tar.add(image, f'{number}.png')
        found.append(digest_of(ShardDataset(data_root=str(tmp_path), pipeline=[])))
    assert len(set(found)) == 3


def test_add_samples__of_many_images_hashes_their_bytes_without_unpickling_or_copying_them(monkeypatch):
    data = listed('a')
    data.data_bytes, data.data_address = torch.zeros(10**7, dtype=torch.uint8).numpy(), torch.zeros(10**5).numpy()
    monkeypatch.setattr('pickle.loads', lambda *_: pytest.fail('unpickled'))
    tracemalloc.start()
    found, peak = digest_of(data), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == hashlib.sha256(bytes(4 * 10**5 + 10**7)).hexdigest() and peak < 10**5


def test_changes__are_named():
    old = dict(samples=10, digest='a')
    assert changed_samples(old, old) == changed_samples({}, old) == []  # 0.1.0 recorded nothing
    assert changed_samples(old, dict(samples=9, digest='b')) == ['number of training samples: 10 → 9']
    assert 'still 10, but with other files' in changed_samples(old, dict(samples=10, digest='b'))[0]
    assert changed_classes(None, ['a']) == changed_classes(['a'], ('a',)) == []
    assert changed_classes(['a', 'b'], ['a', 'c']) == ["classes: 2 → 2, first other name at 1: 'b' → 'c'"]
    assert changed_classes(['a', 'b'], None) == ["classes: 2 → 0, first other name at 0: 'a' → 'none'"]


@pytest.fixture
def run():
    """A runner with what is compared, and a checkpoint that it would have written."""
    loader = SimpleNamespace(dataset=listed('abc'))
    told = []
    cfg = dict(model=dict(type='X', **{f'option_{number}': number for number in range(20)}))
    runner = SimpleNamespace(
        cfg=cfg, train_loop=SimpleNamespace(dataloader=loader), logger=SimpleNamespace(warning=told.append), told=told
    )
    provenance = dict(software=dependencies.software(), version=dependencies.__version__)
    meta = {
        dependencies.CONFIG: dependencies.config_record(cfg),
        dependencies.INPUTS: inputs_of(runner),
        'dataset_meta': dict(classes=['a']),
        'mkd_plugin': provenance,
    }
    return runner, dict(meta=meta)


def compare(runner, checkpoint, allow_changes=False):
    compare_with_checkpoint(runner, checkpoint, 'FILE', allow_changes=allow_changes)


def test_compare__says_nothing_if_nothing_changed(run):
    compare(*run)
    compare(run[0], dict(meta={}))  # a checkpoint of another program
    assert run[0].told == []


def test_compare__warns_of_software_and_threads(run, monkeypatch, one_thread):
    runner, checkpoint = run
    checkpoint['meta']['mkd_plugin']['software']['torch'] = '2.4.0'
    checkpoint['meta'][dependencies.INPUTS]['threads'] = 7
    compare(runner, checkpoint)
    assert len(runner.told) == 1 and f'torch 2.4.0 → {torch.__version__}; threads of torch 7 → 1.' in runner.told[0]
    monkeypatch.setattr(dependencies, 'get_device', lambda: 'cuda')  # whose results do not depend on threads
    compare(runner, checkpoint)
    assert 'threads' not in runner.told[1]


def test_compare__has_at_most_twelve_lines(run):
    runner, checkpoint = run
    runner.cfg = {}
    runner.train_loop.dataloader.dataset = listed('ab' * 30)
    with pytest.raises(ValueError, match='number of training samples: 3 → 60') as caught:
        compare(runner, checkpoint)
    assert len(str(caught.value).splitlines()) <= 12 and 'and 15 more' in str(caught.value)


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


def test_resume__notices_that_690_of_1440_images_are_gone(written_digits, tmp_path, tiny_run, train, monkeypatch):
    data = shutil.copytree(written_digits, tmp_path / 'digits')
    change = {'train_dataloader.dataset.data_root': str(data), 'train_dataloader.dataset.indices': None}
    cfg = tiny_run(tmp_path / 'run', 'iterations', **change)
    with pytest.raises(Stop):
        train(cfg, at=(4, stop))
    inputs = read_checkpoint(tmp_path / 'run' / 'iter_3.pth')['meta'][dependencies.INPUTS]
    assert (inputs['samples'], len(inputs['digest']), inputs['threads']) == (1440, 64, 1)
    images = sorted(Path(data, 'train').rglob('*.png'))
    for image in images[:690]:
        image.unlink()
    with pytest.raises(
        ValueError, match=r'iter_3.pth has .*other data(.|\n)*samples: 1440 → 750\n(.|\n)*allow_changed'
    ):
        train(cfg)
    told = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message, *args: told.append(str(message)))
    cfg.default_hooks.exact_resume.allow_changed_config = True
    with pytest.raises(Stop):
        train(cfg, at=(4, stop))
    assert any('as allowed' in line and 'samples: 1440 → 750' in line for line in told)
