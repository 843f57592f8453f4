"""Any number of processes sees the same images, crops and masks in the same global batch, and computes the same."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
from helpers import ranks
from helpers.witness import seen
from mmengine.config import Config
from mmengine.runner import Runner

from mkd_plugin.datasets import write_digits

differences = importlib.import_module('kill_resume').differences

STEPS, STOP = 12, 9  # the promotion is after six
# Flips and crops; drop path in student and decoder; two stages of an epoch of six steps, 26 samples and a rest of 2.
RUN = """
custom_imports['imports'] += ['helpers.witness']
train_cfg = dict(max_epochs=2)
train_dataloader['batch_size'] = {batch}
train_dataloader.update(drop_last=True, sampler=dict(round_up=False), num_workers={workers})
train_dataloader['dataset']['indices'] = 26
model['objectives']['feature']['head']['drop_path_rate'] = 0.3
custom_hooks += [dict(type='Witness', priority='VERY_HIGH')]
"""
STOPPED = f"custom_hooks += [dict(type='SignalAt', step={STOP}, name='SIGTERM', ranks=[1], priority='HIGHEST')]"
# The number of hidden patches differs between images, and so between processes.
BLOCKS = """
model['backbone']['type'] = 'MaskTokenViT'
model['masking'] = dict(_delete_=True, type='BlockMasking', ratio=0.6, min_block=1)
model['objectives']['feature']['head'] = dict(_delete_=True, type='LinearHead')
model['objectives']['feature']['region'] = 'hidden'
"""


class Folders:
    """Trains variants of the run, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.digits, self.done = folder, write_digits(folder / 'digits'), {}

    def config(self, work_dir: Path, processes: int, more: str = '', workers: int = 0) -> Path:
        work_dir.mkdir(exist_ok=True)
        text = RUN.format(batch=4 // processes, workers=workers) + more
        return ranks.write_config(work_dir, self.digits, more=text)

    def run(
        self, processes: int, more: str = '', *, workers: int = 0, code: int = 0, start: Path | None = None
    ) -> Path:
        """Train, or resume from a copy of a folder, and return the work dir."""
        key = (processes, more, start)
        if key not in self.done:
            work_dir = self.folder / f'{len(self.done)}'
            if start is not None:
                shutil.copytree(start, work_dir)
            config = self.config(work_dir, processes, more, workers)
            found = ranks.train(config, work_dir, '--resume', ranks=processes)
            assert found == [code] * processes, (work_dir / 'rank_0.txt').read_text()[-3000:]
            self.done[key] = work_dir
        return self.done[key]


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp('elastic'))


def assert_same(one: Path, ranks_of_one: int, other: Path, ranks_of_other: int, steps: range) -> None:
    """The same rows bit for bit, and losses in float32 within 1e-6: of a promoted teacher and a student trained so far."""
    wanted, found = seen(one, ranks_of_one), seen(other, ranks_of_other)
    assert list(found) == list(steps) and set(steps) <= set(wanted)
    assert [found[step][1] for step in steps] == [wanted[step][1] for step in steps]
    assert [found[step][0] for step in steps] == pytest.approx([wanted[step][0] for step in steps], rel=1e-6)


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize('more', ['', BLOCKS], ids=['visible patches', 'blocks'])
def test_train__any_number_of_processes_sees_the_same(folders, processes, more):
    alone, together = folders.run(1, more), folders.run(processes, more, workers=1)
    assert_same(alone, 1, together, processes, range(STEPS))
    rows = [row for _, rows in seen(alone, 1).values() for row in rows]
    assert len({tuple(row) for row in rows}) == 4 * STEPS  # or there would be nothing to compare
    assert len({name for name, _, _ in rows[:24]}) == 24


@pytest.mark.parametrize('processes', [1, pytest.param(4, marks=pytest.mark.slow)])
def test_resume__on_another_number_of_processes_goes_on_with_the_same(folders, processes):
    stopped = folders.run(2, STOPPED, code=85)
    assert_same(folders.run(1), 1, folders.run(processes, STOPPED, start=stopped), processes, range(STOP, STEPS))


def test_resume__on_the_same_number_is_bit_identical(folders):
    stopped = folders.run(2, STOPPED, code=85)
    assert differences(folders.run(2), folders.run(2, STOPPED, start=stopped)) == []


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'batch_size': 2}, 'images of a step: 2 × 2 → 1 × 2. To keep 4, use train_dataloader.batch_size=4\n'),
        ({'drop_last': False}, 'world_size: 2 → 1, which decides the result: round_up of the sampler must be the'),
        (
            {'sampler': dict(type='DefaultSampler', shuffle=True)},
            'world_size: 2 → 1, which decides the result: only ElasticSampler',
        ),
    ],
    ids=['other global batch', 'other number of steps', 'other order'],
)
def test_resume__says_what_to_keep(folders, changes, message):
    work_dir = folders.run(2, STOPPED, code=85)
    cfg = Config.fromfile(folders.config(folders.folder / 'refused', 1, STOPPED))
    cfg.train_dataloader.pop('sampler' if 'sampler' in changes else '', None)
    cfg.train_dataloader.update(changes)
    cfg.work_dir, cfg.load_from, cfg.resume = str(folders.folder / 'refused'), str(work_dir / 'preempted.pth'), True
    with pytest.raises(ValueError, match='Changed:') as caught:
        Runner.from_cfg(cfg).train()
    assert message in str(caught.value)
