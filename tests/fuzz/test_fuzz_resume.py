"""A run's folder with damaged files: resuming takes a whole checkpoint, or says which file is in the way."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bounds import bounded
from helpers.fuzz_files import tensors_in
from helpers.mutations import DAMAGE, PLACES, edit, examples
from helpers.tiny_runs import At, kill_resume
from hypothesis import given
from hypothesis import strategies as st
from mmengine.runner import Runner

from mkd_plugin.checkpoint.read import read_checkpoint
from mkd_plugin.engine.checkpoints import newest_checkpoint

pytestmark = pytest.mark.filterwarnings('ignore')  # torch's, about damaged files


@pytest.fixture(scope='module')
def one_thread_here():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(digits: Path, work_dir: Path) -> Any:
    """A run of four epochs of two iterations, which keeps two checkpoints."""
    cfg = kill_resume.build_config(kill_resume.Scenario('epochs', 0), digits, work_dir)
    cfg.train_dataloader.dataset.indices = 2 * kill_resume.BATCH
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    return cfg


def stop(runner: Runner, outputs: Any) -> None:
    raise InterruptedError


@pytest.fixture(scope='module')
def whole(written_digits, tmp_path_factory, one_thread_here) -> Path:
    """The folder of a run that was stopped in its last iteration; it was moved since."""
    work_dir = tmp_path_factory.mktemp('runs') / 'run'
    runner = Runner.from_cfg(config(written_digits, work_dir))
    runner.register_hook(At(8, stop))
    with pytest.raises(InterruptedError):
        runner.train()
    assert {'epoch_2.pth', 'epoch_3.pth', 'last_checkpoint', 'metrics.jsonl'} <= {
        path.name for path in work_dir.iterdir()
    }
    return work_dir


def copy_of(whole: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    return folder


@cache
def undamaged(path: Path) -> list[torch.Tensor]:
    """The tensors of a file that no test changes."""
    return list(tensors_in(read_checkpoint(path)))


def same_as(good: Path, path: Path) -> bool:
    """Whether a file holds the same tensors as an undamaged one."""
    ours, theirs = list(tensors_in(read_checkpoint(path))), undamaged(good)
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def choose(work_dir: Path, whole: Path, damaged: list[str]) -> None:
    """Choose the checkpoint to resume from: a whole one of this folder, the newest; or the message names a damaged file."""
    told: list[str] = []
    size = sum(path.stat().st_size for path in work_dir.rglob('*') if path.is_file())
    try:
        with bounded(size):
            found = newest_checkpoint(work_dir, warn=told.append)
    except ValueError as error:
        assert any(name in str(error) for name in damaged), error
        assert all(not same(whole, work_dir / name) for name in ('epoch_2.pth', 'epoch_3.pth')), error
        return
    assert found is not None and Path(found).parent == work_dir
    assert same_as(whole / Path(found).name, Path(found))
    if Path(found).name == 'epoch_2.pth':
        assert not same(whole, work_dir / 'epoch_3.pth') and 'epoch_3.pth' in ' '.join(told)


@pytest.fixture(scope='module')
def resumed(written_digits, whole, tmp_path_factory) -> Path:
    """The undamaged folder after the run was resumed to its end."""
    work_dir = copy_of(whole, tmp_path_factory.mktemp('resumed') / 'run')
    Runner.from_cfg(config(written_digits, work_dir)).train()
    return work_dir


def same(whole: Path, path: Path) -> bool:
    """Whether a file has the bytes that it had."""
    return path.is_file() and path.read_bytes() == (whole / path.name).read_bytes()


@given(edits=DAMAGE, name=st.sampled_from(['epoch_2.pth', 'epoch_3.pth']))
@examples(0.25)
def test_newest_checkpoint__one_damaged_checkpoint(whole, tmp_path, edits, name):
    work_dir = copy_of(whole, tmp_path / 'run')
    path = work_dir / name
    path.write_bytes(edit(path.read_bytes(), edits))
    choose(work_dir, whole, [name])


@given(places=st.dictionaries(st.integers(0, 20), PLACES, min_size=1, max_size=4))
@examples(0.25)
def test_newest_checkpoint__any_files_are_cut_off(whole, tmp_path, places):
    work_dir = copy_of(whole, tmp_path / 'run')
    files = sorted(path for path in work_dir.rglob('*') if path.is_file())
    damaged = []
    for number, place in places.items():
        path = files[number % len(files)]
        path.write_bytes(edit(path.read_bytes(), [('cut', place)]))
        damaged.append(path.name)
    choose(work_dir, whole, damaged)


@given(content=st.one_of(st.binary(max_size=64), st.sampled_from([b'', b'\0', b'/', b'..', b'/dev/zero', b'\xff\xfe'])))
@examples(0.15)
def test_newest_checkpoint__rubbish_in_the_pointer(whole, tmp_path, content):
    work_dir = copy_of(whole, tmp_path / 'run')
    (work_dir / 'last_checkpoint').write_bytes(content)
    choose(work_dir, whole, ['last_checkpoint'])


RUBBISH = ('epoch_3.pth', 'last_checkpoint', 'metrics.jsonl', 'stage_0.pth', 'stage_1.pth', 'stage_2.pth', 'run.json')


@given(edits=DAMAGE, name=st.sampled_from(RUBBISH))
@examples(0.1)
def test_resume__ends_with_the_same_weights_or_names_the_file(written_digits, whole, resumed, tmp_path, edits, name):
    """To those of a run in whose folder nothing was damaged."""
    work_dir = copy_of(whole, tmp_path / 'run')
    path = work_dir / name
    path.write_bytes(edit(path.read_bytes() if path.exists() else b'{}', edits))
    try:
        Runner.from_cfg(config(written_digits, work_dir)).train()
    except (ValueError, OSError) as error:
        assert name in str(error)
        return
    weights, wanted = (read_checkpoint(folder / 'epoch_4.pth')['state_dict'] for folder in (work_dir, resumed))
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[key], wanted[key]) for key in wanted)
