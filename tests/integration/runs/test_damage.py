"""A run goes on from the newest whole checkpoint; the damaged ones are named and kept."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger

from mkd_plugin.checkpoint import CheckpointError, read_checkpoint

differences = importlib.import_module('kill_resume').differences


class Stop(Exception):
    """Ends a run from inside."""


def stop(runner, outputs):
    raise Stop


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    told = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message, *args: told.append(str(message)))
    return told


@pytest.fixture
def stopped(tmp_path, tiny_run, train):
    """A run that was stopped in its third epoch and has kept two checkpoints; its config."""
    cfg = tiny_run(tmp_path / 'run', **{'default_hooks.checkpoint.max_keep_ckpts': 2})
    with pytest.raises(Stop):
        train(cfg, at=(14, stop))
    return cfg


def flip(path: Path, length: int = 16) -> None:
    """Change bytes inside a tensor of the optimiser's state: torch.load does not notice."""
    content = bytearray(path.read_bytes())
    moment = torch.load(path)['optimizer']['state'][0]['exp_avg'].numpy().tobytes()
    start = content.index(moment) + 16
    content[start : start + length] = bytes(byte ^ 0x40 for byte in content[start : start + length])
    path.write_bytes(content)
    torch.load(path)


def zero_middle(path: Path) -> None:
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


@pytest.mark.parametrize('damage', [flip, zero_middle])
def test_resume__takes_the_newest_whole_checkpoint_and_keeps_the_damaged_one(
    stopped, tmp_path, tiny_run, train, warnings, damage
):
    newest, rubbish = tmp_path / 'run' / 'epoch_2.pth', bytes(range(256))
    damage(newest)
    damaged = newest.read_bytes()
    (tmp_path / 'run' / 'last_checkpoint').write_bytes(rubbish)
    (tmp_path / 'run' / 'stage_0.pth').write_bytes(rubbish)
    train(stopped)
    for name in ('epoch_2.pth', 'stage_0.pth', 'last_checkpoint'):
        assert [line for line in warnings if f'{name} is passed over' in line and 'damaged' in line], warnings
    assert newest.with_name('epoch_2.pth.damaged').read_bytes() == damaged
    whole = tmp_path / 'whole'
    train(tiny_run(whole))
    (tmp_path / 'run' / 'stage_0.pth').write_bytes((whole / 'stage_0.pth').read_bytes())
    (tmp_path / 'run' / 'epoch_3.pth').unlink()  # two checkpoints are kept
    assert differences(whole, tmp_path / 'run') == []


def test_resume__refuses_if_every_checkpoint_is_damaged(stopped, tmp_path, train):
    for path in (tmp_path / 'run').glob('epoch_*.pth'):
        flip(path)
    with pytest.raises(ValueError, match=r"none of the checkpoints .* can be read: \['epoch_1.pth', 'epoch_2.pth'\]"):
        train(stopped)


def test_resume_file__names_what_is_damaged_or_missing(stopped, tmp_path, train):
    stopped.load_from = str(tmp_path / 'run' / 'stage_1.pth')
    with pytest.raises(ValueError, match=r'stage_1.pth cannot be resumed: it has no optimizer\..*load_from=.*stage_1'):
        train(stopped)
    torch.save(read_checkpoint(stopped.load_from)['state_dict'], tmp_path / 'weights.pth')
    stopped.load_from = str(tmp_path / 'weights.pth')
    with pytest.raises(
        ValueError, match=r'cannot be resumed: it has no meta, no optimizer, no message_hub\. Its entries'
    ):
        train(stopped)
    stopped.load_from = str(tmp_path / 'run' / 'epoch_2.pth')
    flip(Path(stopped.load_from))
    with pytest.raises(CheckpointError, match=r"epoch_2.pth .*damaged: 1 of \d+ records .*, first 'archive/data/\d+'"):
        train(stopped)


def test_stage_file__that_is_damaged_does_not_become_a_teacher(stopped, tmp_path):
    from mkd_plugin import load_student

    file = tmp_path / 'run' / 'stage_1.pth'
    content = bytearray(file.read_bytes())
    content[content.index(torch.load(file)['state_dict']['backbone.cls_token'].numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'stage_1.pth .*damaged'):
        load_student(file)
