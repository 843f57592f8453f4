"""Which checkpoint of a folder is the newest whole one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mkd_plugin.engine.checkpoints import newest_checkpoint


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
