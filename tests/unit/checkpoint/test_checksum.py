"""Damage anywhere in a checkpoint is noticed before its tensors are used."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from mkd_plugin.checkpoint import CheckpointError, load_backbone, read_checkpoint
from mkd_plugin.checkpoint.checksum import check_records
from mkd_plugin.checkpoint.write import write_weights
from mkd_plugin.models.vit import VisionTransformer

WEIGHTS = {
    'a.weight': torch.linspace(-1, 1, 32).view(4, 8),
    'a.bias': torch.arange(4.0),
    'scale': torch.tensor(3.0),
    'half': torch.ones(3, dtype=torch.bfloat16),
    'none': torch.zeros(0, 2),
}


def write(path: Path) -> bytes:
    if path.suffix == '.safetensors':
        write_weights(path, WEIGHTS, dict(version='1', backbone=dict(depth=3)))
    else:
        state = {0: dict(step=torch.tensor(1.0), exp_avg=torch.arange(8.0))}
        torch.save(dict(state_dict=WEIGHTS, meta=dict(iter=3, epoch=1), optimizer=dict(state=state)), path)
    return path.read_bytes()


def plain(value):
    """A checkpoint as values that can be compared bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.reshape(-1).view(torch.uint8).tolist()
    return {key: plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def damaged(content: bytes, start: int, length: int = 16) -> bytes:
    return content[:start] + bytes(byte ^ 0x5A for byte in content[start : start + length]) + content[start + length :]


@pytest.mark.parametrize('name, step', [('file.pth', 11), ('file.safetensors', 5)])
def test_read_checkpoint__a_changed_byte_is_refused_or_changes_nothing(tmp_path, name, step):
    """In tensors, pickles, headers, and the directory; nothing depends on a zip archive's padding and dates."""
    path, refused = tmp_path / name, 0
    content = write(path)
    whole = plain(read_checkpoint(path))
    for place in range(0, len(content), step):
        path.write_bytes(damaged(content, place, 1))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch warns of a pickle of another version
                assert plain(read_checkpoint(path)) == whole, place
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize('lazy', [False, True])
def test_read_checkpoint__names_the_damaged_record(tmp_path, lazy):
    path = tmp_path / 'file.pth'
    content = write(path)
    path.write_bytes(damaged(content, content.index(WEIGHTS['a.weight'].numpy().tobytes()) + 32))
    torch.load(path)  # notices nothing
    with pytest.raises(CheckpointError, match=r"file\.pth.*damaged: 1 of \d+ records .*, first 'file/data/0'"):
        read_checkpoint(path, lazy=lazy)
    path.write_bytes(damaged(content, content.index(b'exp_avg'), 3))
    with pytest.raises(CheckpointError, match="damaged: Bad CRC-32 for file 'file/data.pkl'"):
        read_checkpoint(path, lazy=lazy)


def test_read_checkpoint__notices_a_tensor_that_became_a_folder(tmp_path):
    """One bit in the archive's directory: torch then leaves the tensor's memory as it was."""
    path = tmp_path / 'file.pth'
    content = bytearray(write(path))
    entry = content.rindex(b'file/data/0') - 46
    content[entry + 38] |= 0x10
    path.write_bytes(content)
    torch.load(path)  # notices nothing
    with pytest.raises(CheckpointError, match="first 'file/data/0'"):
        read_checkpoint(path)


def test_read_checkpoint__names_the_damaged_tensor_of_safetensors(tmp_path):
    path = tmp_path / 'file.safetensors'
    content = write(path)
    path.write_bytes(damaged(content, content.index(WEIGHTS['a.weight'].numpy().tobytes())))
    with pytest.raises(CheckpointError, match=r"1 of 7 tensors or texts do not match, first 'a\.weight'"):
        read_checkpoint(path)
    path.write_bytes(content.replace(b'depth', b'width'))
    with pytest.raises(CheckpointError, match="first 'mkd_plugin'"):
        read_checkpoint(path)


def test_read_checkpoint__content_of_a_store_is_checked(tmp_path):
    content = write(tmp_path / 'file.pth')
    assert plain(read_checkpoint('s3://a/file.pth', content=io.BytesIO(content))['state_dict']) == plain(WEIGHTS)
    with pytest.raises(CheckpointError, match='damaged'):
        read_checkpoint('s3://a/file.pth', content=io.BytesIO(damaged(content, content.index(b'exp_avg'), 1)))


def test_load_backbone__leaves_the_network_unchanged_by_a_damaged_file(tmp_path, vit_options):
    network, path = VisionTransformer(**vit_options), tmp_path / 'file.pth'
    torch.save({name: torch.full_like(value, 0.125) for name, value in network.state_dict().items()}, path)
    content, before = path.read_bytes(), plain(network.state_dict())
    path.write_bytes(damaged(content, content.rindex(torch.full((8,), 0.125).numpy().tobytes())))
    with pytest.raises(CheckpointError, match='damaged'):
        load_backbone(network, path)
    assert plain(network.state_dict()) == before


@pytest.mark.skipif(not hasattr(torch.serialization, 'set_crc32_options'), reason='torch < 2.6')
def test_read_checkpoint__reads_a_file_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        write(tmp_path / 'file.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert plain(read_checkpoint(tmp_path / 'file.pth')['state_dict']) == plain(WEIGHTS)


def test_check_records__of_an_archive_that_was_packed_again(tmp_path):
    write(tmp_path / 'file.pth')
    with zipfile.ZipFile(tmp_path / 'file.pth') as old, zipfile.ZipFile(tmp_path / 'new', 'w') as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    check_records(tmp_path / 'new')
    content = (tmp_path / 'new').read_bytes()
    (tmp_path / 'worse').write_bytes(damaged(content, content.index(b'data.pkl') + 20))
    with pytest.raises(ValueError, match='damaged: 1 of'):
        check_records(tmp_path / 'worse')


def test_check_records__reads_an_unchanged_file_once(tmp_path, monkeypatch):
    path, opened, really = tmp_path / 'file.pth', [], Path.open
    content = write(path)
    os.utime(path, (1, 1))
    monkeypatch.setattr(Path, 'open', lambda self, *args, **more: (opened.append(self), really(self, *args, **more))[1])
    check_records(path)
    once = len(opened)
    check_records(path)
    assert once and len(opened) == once
    path.write_bytes(damaged(content, content.index(b'exp_avg'), 1))
    for _ in range(2):
        with pytest.raises(ValueError, match='damaged'):
            check_records(path)
