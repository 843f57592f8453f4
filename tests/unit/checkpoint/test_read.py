"""Reading refuses files that would run code, and reports damaged files."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hostile_files import WEIGHTS, hostile_file
from mmengine.logging import HistoryBuffer

from mkd_plugin.checkpoint.read import read_checkpoint, weights_of


@pytest.fixture
def trace(tmp_path) -> Path:
    return tmp_path / 'code was run'


@pytest.fixture(params=['zip', 'legacy'])
def hostile(request, tmp_path, trace) -> Path:
    return hostile_file(tmp_path / 'hostile.pth', trace, zipped=request.param == 'zip')


def test_hostile__does_run_code_when_it_is_trusted(hostile, trace):
    """Check the attack itself, so that the tests below are meaningful."""
    torch.load(hostile, weights_only=False)
    assert trace.exists()


def test_read_checkpoint__runs_no_code(hostile, trace):
    with pytest.raises(ValueError, match='was refused: it holds more than tensors and plain values') as error:
        read_checkpoint(hostile)
    assert not trace.exists()
    assert 'Nothing in it was run' in str(error.value)
    assert str(hostile) in str(error.value)


def test_read_checkpoint__says_what_was_refused(hostile):
    with pytest.raises(ValueError, match=r'plain values \((pathlib\.Path|pathlib\.Path\.mkdir)\)'):
        read_checkpoint(hostile)


def test_read_checkpoint__reads_mmengines_own_history(tmp_path):
    """History buffers hold numpy arrays and look up their statistics with `getattr`."""
    buffer = HistoryBuffer()
    for value in (1.0, 4.0, 7.0):
        buffer.update(value)
    torch.save(dict(message_hub=dict(log_scalars=dict(loss=buffer)), best=np.float64(0.5)), tmp_path / 'file.pth')
    found = read_checkpoint(tmp_path / 'file.pth')
    loss = found['message_hub']['log_scalars']['loss']
    assert (loss.current(), loss.mean(2), loss.max(), found['best']) == (7.0, 5.5, 7.0, 0.5)


@pytest.mark.parametrize('name', ['__init__', '__subclasses__', 'register_statistics', '__globals__'])
def test_read_checkpoint__getattr_reaches_nothing_else(tmp_path, name):
    class Reaching:
        def __reduce__(self):
            return getattr, (HistoryBuffer, name)

    torch.save(dict(state_dict=WEIGHTS, meta=Reaching()), tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=f"getattr\\(.*HistoryBuffer.*, '{name}'\\) is refused"):
        read_checkpoint(tmp_path / 'file.pth')


def test_read_checkpoint__leaves_torchs_own_list_alone(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save(WEIGHTS, tmp_path / 'file.pth')
    read_checkpoint(tmp_path / 'file.pth')
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize('legacy', [False, True])
def test_read_checkpoint__gives_what_was_saved(tmp_path, legacy):
    saved = dict(
        state_dict=WEIGHTS, meta=dict(epoch=3, classes=('a', 'b'), lr=[0.1, None]), odd=collections.OrderedDict(a=1)
    )
    torch.save(saved, tmp_path / 'file.pth', _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(str(tmp_path / 'file.pth'))
    assert found['meta'] == saved['meta']
    assert found['odd'] == saved['odd']
    assert all(torch.equal(found['state_dict'][name], value) for name, value in WEIGHTS.items())


def test_read_checkpoint__expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(WEIGHTS, tmp_path / 'file.pth')
    assert set(read_checkpoint('~/file.pth')) == {'weight', 'bias'}


@pytest.mark.parametrize('name', ['missing.pth', '.'])
def test_read_checkpoint__missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match='There is no checkpoint'):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('legacy', [False, True])
def test_read_checkpoint__truncated_file(tmp_path, share, legacy):
    path = tmp_path / 'file.pth'
    torch.save(dict(state_dict=WEIGHTS), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match='cannot be read as a checkpoint: is it one, and complete|was refused'):
        read_checkpoint(path)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_read_checkpoint__damaged_file(tmp_path):
    """Change one byte at a time of a legacy file: reading succeeds or raises ValueError."""
    path = tmp_path / 'file.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), path, _use_new_zipfile_serialization=False)
    whole, escaped = path.read_bytes(), collections.Counter()
    for place in range(0, len(whole), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_checkpoint(path)
        except ValueError:
            pass
        except Exception as error:
            escaped[type(error).__name__] += 1
    assert not escaped


@pytest.mark.parametrize(
    'content', [b'hello world\n', b'', b'<!DOCTYPE html><html>', b'{"a": 1}', b'version https://git-lfs']
)
def test_read_checkpoint__other_kind_of_file(tmp_path, content):
    """For example a downloaded web page, or a file that git-lfs did not fetch."""
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(ValueError, match='file.pth'):
        read_checkpoint(tmp_path / 'file.pth')


def test_read_checkpoint__web_page_is_not_called_hostile(tmp_path):
    (tmp_path / 'file.pth').write_bytes(b'<!DOCTYPE html><html>')
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'):
        read_checkpoint(tmp_path / 'file.pth')


def test_read_checkpoint__no_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / 'file.pth')
    with pytest.raises(ValueError, match='holds a list, not a dict of weights'):
        read_checkpoint(tmp_path / 'file.pth')


@pytest.mark.parametrize(
    'checkpoint',
    [WEIGHTS, dict(state_dict=WEIGHTS, optimizer={}), dict(model=WEIGHTS, epoch=3), dict(WEIGHTS, epoch=3)],
    ids=['plain', 'state_dict', 'model', 'with a number'],
)
def test_weights_of__finds_the_tensors(checkpoint):
    assert weights_of(checkpoint, 'file.pth') == WEIGHTS


@pytest.mark.parametrize(
    'checkpoint',
    [
        dict(optimizer=dict(state={0: dict(step=torch.ones(1))})),
        dict(state_dict={}),
        {},
        dict(state={}, param_groups=[]),
    ],
)
def test_weights_of__no_weights(checkpoint):
    with pytest.raises(ValueError, match='file.pth holds no weights: its entries are'):
        weights_of(checkpoint, 'file.pth')
