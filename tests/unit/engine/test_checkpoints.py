"""Which checkpoint of a folder is the newest whole one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mkd_plugin.engine.checkpoints import check_resumable, newest_checkpoint, save_atomically


def save(path: Path, iteration: int, **more) -> Path:
    torch.save(
        dict(meta=dict(iter=iteration, epoch=0), state_dict={}, optimizer=dict(x=torch.ones(1000)), **more), path
    )
    return path


def test_newest_checkpoint__goes_by_the_iteration_and_not_by_name_or_time(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    newest = save(tmp_path / 'iter_9.pth', 10)
    save(tmp_path / 'iter_91.pth', 9)
    os.utime(newest, (1, 1))  # the clock was set back
    torch.save(dict(meta=dict(iter=99, epoch=9), state_dict={}), tmp_path / 'stage_1.pth')  # weights only
    (tmp_path / 'last_checkpoint').write_text('/gone/iter_9.pth')  # the folder was moved
    assert newest_checkpoint(tmp_path) == str(newest)


def test_newest_checkpoint__passes_damaged_files_over(tmp_path):
    whole, told = save(tmp_path / 'iter_1.pth', 1), []
    half = save(tmp_path / 'iter_2.pth', 2)
    half.write_bytes(half.read_bytes()[:-300])
    (tmp_path / 'iter_3.pth').write_bytes(b'')
    (tmp_path / 'last_checkpoint').write_text(str(half))
    assert newest_checkpoint(tmp_path, warn=told.append) == str(whole)
    assert len(told) == 2 and 'iter_2.pth is passed over' in told[0]
    whole.unlink()
    with pytest.raises(ValueError, match=r"none of the checkpoints .*'iter_2.pth', 'iter_3.pth'"):
        newest_checkpoint(tmp_path)


def change(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_newest_checkpoint__notices_a_changed_tensor_and_a_changed_pickle(tmp_path):
    whole, told = save(tmp_path / 'iter_1.pth', 1), []
    change(save(tmp_path / 'iter_2.pth', 2), torch.ones(4).numpy().tobytes(), torch.ones(4).mul(-1).numpy().tobytes())
    change(save(tmp_path / 'iter_3.pth', 3), b'optimizer', b'optimizes')  # reads as a file without an optimiser
    change(save(tmp_path / 'iter_4.pth', 4), b'K\x04', b'K\x00')
    assert newest_checkpoint(tmp_path, warn=told.append) == str(whole)
    assert [line.split(' is passed over, and kept')[0][-10:] for line in told] == [
        'iter_3.pth',
        'iter_4.pth',
        'iter_2.pth',
    ]
    assert all((tmp_path / f'iter_{number}.pth').is_file() for number in range(1, 5))


@pytest.mark.parametrize('rubbish', [bytes(range(256)), b'a\0b', b'x' * 5000, b'iter\n9', b'\xef\xbf\xbd'])
def test_newest_checkpoint__passes_a_damaged_pointer_over(tmp_path, rubbish):
    whole, told = save(tmp_path / 'iter_1.pth', 1), []
    (tmp_path / 'last_checkpoint').write_bytes(rubbish)
    assert newest_checkpoint(tmp_path, warn=told.append) == str(whole)
    assert len(told) == 1 and 'last_checkpoint is passed over: it is damaged' in told[0]


def test_newest_checkpoint__ignores_foreign_counters(tmp_path):
    whole = save(tmp_path / 'iter_1.pth', 1)
    save(tmp_path / 'other.pth', 'first')
    assert newest_checkpoint(tmp_path) == str(whole)


class Saver:
    """A runner that only saves."""

    def __init__(self, folder: Path) -> None:
        self.work_dir = folder

    def save_checkpoint(self, folder: str, name: str) -> None:
        save(Path(folder, name), 2)


def test_save_atomically__keeps_a_damaged_checkpoint_of_the_same_name(tmp_path):
    path = tmp_path / 'iter_2.pth'
    save_atomically(Saver(tmp_path), tmp_path, path.name)
    save_atomically(Saver(tmp_path), tmp_path, path.name)
    assert [file.name for file in tmp_path.iterdir()] == ['iter_2.pth']
    change(path, b'optimizer', b'optimizes')
    damaged = path.read_bytes()
    save_atomically(Saver(tmp_path), tmp_path, path.name)
    assert (tmp_path / 'iter_2.pth.damaged').read_bytes() == damaged
    assert newest_checkpoint(tmp_path) == str(path)


def test_check_resumable__names_what_is_missing():
    whole = dict(meta=dict(epoch=1, iter=2), optimizer={}, message_hub={}, state_dict={})
    check_resumable(whole, 'x.pth')
    for lacking, words in (
        (dict(model={}), 'no meta, no optimizer, no message_hub. Its entries are: model.'),
        (
            {**whole, 'meta': dict(iter=2)},
            'it has no epoch in meta. Its entries are: message_hub, meta, optimizer, state_',
        ),
        ({**whole, 'meta': None}, 'it has no meta. '),
    ):
        with pytest.raises(ValueError) as caught:
            check_resumable(lacking, 'x.pth')
        assert words in str(caught.value) and 'load_from=x.pth, without --resume' in str(caught.value)
