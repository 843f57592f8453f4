"""Damaged and hostile checkpoints: they are read as they were, or refused by name, at little cost, and run nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bounds import bounded
from helpers.fuzz_files import (
    BOMBS,
    CALLS,
    VIT,
    WAYS,
    call,
    change_pickle,
    student,
    tensors_in,
    write_checkpoints,
    write_hugging_face,
)
from helpers.mutations import CHANGES, DAMAGE, TAMPERING, as_json, change, edit, examples
from hypothesis import given
from hypothesis import strategies as st

from mkd_cli.main import main
from mkd_plugin.checkpoint.read import CheckpointError, read_checkpoint
from mkd_plugin.interop.open_model import open_models

pytestmark = pytest.mark.filterwarnings('ignore')  # torch's, about damaged files

KINDS = ('zip.pth', 'legacy.pth', 'ours.safetensors', 'script.pt')
# The old format and the files of other programs without a zip archive have no checksum.
CHECKED = ('zip.pth', 'ours.safetensors', 'script.pt')


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('whole')
    return write_checkpoints(folder)


@pytest.fixture(scope='module')
def hugging_face(tmp_path_factory) -> Path:
    pytest.importorskip('transformers')
    return write_hugging_face(tmp_path_factory.mktemp('whole') / 'folder')


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def read(path: Path, **options: Any) -> dict[str, Any] | None:
    """What a file holds; None if it was refused as it should be."""
    try:
        with bounded(size_of(path)):
            return read_checkpoint(path, **options)
    except (CheckpointError, FileNotFoundError) as error:
        assert path.name in str(error), error
        assert str(error).replace('\n', '').isprintable(), repr(error)
        return None


def open_network(path: Path) -> None:
    """Open a file as commands do: it is a network, or refused by name."""
    try:
        with bounded(size_of(path)):
            open_models([str(path)], known={}, device='cpu')
    except (ValueError, FileNotFoundError) as error:
        assert path.name in str(error), error


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mkd inspect` prints a description or a short message."""
    with bounded(size_of(path)):
        code = main(['inspect', str(path)])
    shown = capsys.readouterr()
    assert code in (0, 2) and 'Traceback' not in shown.err
    assert code == 0 or (path.name in shown.err and len(shown.err.splitlines()) <= 12)
    assert (shown.out + shown.err).replace('\n', '').isprintable()


@pytest.mark.parametrize('kind', KINDS)
@given(edits=DAMAGE, lazy=st.booleans())
def test_read_checkpoint__a_damaged_file_is_refused_or_gives_what_was_saved(files, tmp_path, kind, edits, lazy):
    whole = files[kind].read_bytes()
    path = tmp_path / kind
    path.write_bytes(edit(whole, edits))
    found = read(path, lazy=lazy)
    if found is not None and kind in CHECKED:
        ours, theirs = list(tensors_in(found)), list(tensors_in(read_checkpoint(files[kind])))
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize('kind', KINDS)
@given(edits=TAMPERING)
def test_read_checkpoint__lying_headers_and_inserted_bytes_cost_little(files, tmp_path, kind, edits):
    path = tmp_path / kind
    path.write_bytes(edit(files[kind].read_bytes(), edits))
    read(path)


@pytest.mark.parametrize('kind', ['zip.pth', 'legacy.pth', 'script.pt'])
@given(what=st.sampled_from(CALLS), how=WAYS, number=st.integers(0, 10**4))
def test_read_checkpoint__runs_nothing(files, tmp_path, kind, what, how, number):
    canary, path = tmp_path / 'canary', tmp_path / kind
    path.write_bytes(change_pickle(files[kind], call(*what, canary, how=how), number))
    read(path)
    assert not canary.exists()


@pytest.mark.parametrize('bomb', BOMBS)
@pytest.mark.parametrize('kind', ['zip.pth', 'legacy.pth', 'script.pt'])
def test_read_checkpoint__bombs_cost_little(files, tmp_path, kind, bomb):
    path = tmp_path / kind
    path.write_bytes(change_pickle(files[kind], BOMBS[bomb], 7))
    read(path)


@given(changes=CHANGES, name=st.sampled_from(['config.json', 'model.safetensors.index.json']), cut=st.booleans())
@examples(0.5)
def test_read_checkpoint__folders_of_hugging_face(hugging_face, tmp_path, changes, name, cut):
    path = tmp_path / 'folder'
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(hugging_face, path)
    text = as_json(change(json.loads((path / name).read_text()), changes))
    (path / name).write_text(text[: len(text) // 2] if cut else text)
    read_folder(path)


@given(edits=TAMPERING, number=st.integers(0, 10))
@examples(0.5)
def test_read_checkpoint__damaged_parts_of_a_folder(hugging_face, tmp_path, edits, number):
    path = tmp_path / 'folder'
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(hugging_face, path)
    parts = sorted(path.glob('*.safetensors'))
    part = parts[number % len(parts)]
    part.write_bytes(edit(part.read_bytes(), edits))
    read_folder(path)


@pytest.mark.parametrize(
    'named', ['model.safetensors.index.json', '.', '', 'config.json', 'gone.safetensors', '/dev/zero', 'a\0b']
)
def test_read_checkpoint__an_index_that_names_itself_and_others(hugging_face, tmp_path, named):
    path = tmp_path / 'folder'
    shutil.copytree(hugging_face, path)
    (path / 'model.safetensors.index.json').write_text(as_json(dict(weight_map=dict(weight=named))))
    read_folder(path)


def read_folder(path: Path) -> None:
    """Read a folder; the message of a refused one names it or one of its files."""
    try:
        with bounded(size_of(path)):
            read_checkpoint(path)
    except (CheckpointError, FileNotFoundError) as error:
        assert path.name in str(error), error


HEADER = st.lists(
    st.tuples(
        st.sampled_from(['dtype', 'shape', 'data_offsets']),
        st.one_of(
            st.sampled_from(['F32', 'F64', 'I8', 'BOOL', 'F8_E4M3', 'X', None]),
            st.lists(st.sampled_from([0, 1, -1, 7, 2**31, 2**62, 2**64]), max_size=4),
        ),
    ),
    min_size=1,
    max_size=3,
)


@given(changes=HEADER, number=st.integers(0, 30))
def test_read_checkpoint__headers_of_safetensors(files, tmp_path, changes, number):
    whole = files['ours.safetensors'].read_bytes()
    length = int.from_bytes(whole[:8], 'little')
    header = json.loads(whole[8 : 8 + length])
    names = sorted(set(header) - {'__metadata__'})
    for key, value in changes:
        header[names[number % len(names)]][key] = value
    text = as_json(header).encode()
    path = tmp_path / 'lying.safetensors'
    path.write_bytes(len(text).to_bytes(8, 'little') + text + whole[8 + length :])
    read(path)


@given(changes=CHANGES)
def test_open_models__provenance_that_claims_another_network(tmp_path, changes):
    weights, provenance = student()
    path = tmp_path / 'claims.pth'
    torch.save(dict(state_dict=weights, meta=dict(mkd_plugin=change(provenance, changes))), path)
    open_network(path)


@pytest.mark.parametrize(
    'claim, reason',
    [
        (dict(depth=10**6), 'are of another network than its tensors: depth 1000000, which is 1'),
        (dict(width=2**20), 'state what no network has'),
        (dict(mlp_ratio=1e6), 'are of another network than its tensors: mlp_ratio 1000000.0, which is 4.0'),
        (dict(num_heads=0), 'state what no network has'),
    ],
)
def test_open_models__a_huge_network_is_refused_before_it_is_built(tmp_path, claim, reason):
    weights, provenance = student()
    backbone = {**provenance['backbone'], 'arch': {**VIT['arch'], **claim}}
    path = tmp_path / 'claims.pth'
    torch.save(dict(state_dict=weights, meta=dict(mkd_plugin={**provenance, 'backbone': backbone})), path)
    with pytest.raises(CheckpointError, match=f'claims.pth: Its metadata {reason}'), bounded(size_of(path)):
        open_models([str(path)], known={}, device='cpu')


@pytest.mark.parametrize('claim', [dict(layer_scale=[]), dict(layer_scale=True), dict(arch=dict(num_heads=2))])
def test_open_models__options_that_no_network_has_are_refused_with_the_file(tmp_path, claim):
    weights, provenance = student()
    provenance['backbone'].update(claim)
    path = tmp_path / 'claims.pth'
    torch.save(dict(state_dict=weights, meta=dict(mkd_plugin=provenance)), path)
    with pytest.raises(CheckpointError, match='claims.pth: Its metadata state what no network has'):
        open_models([str(path)], known={}, device='cpu')


@pytest.mark.parametrize('kind', ['zip.pth', 'ours.safetensors'])
@given(edits=TAMPERING)
@examples(0.3)
def test_open_models__damaged_files(files, tmp_path, kind, edits):
    path = tmp_path / kind
    path.write_bytes(edit(files[kind].read_bytes(), edits))
    open_network(path)


@pytest.mark.parametrize('kind', KINDS)
@given(edits=TAMPERING)
@examples(0.2)
def test_inspect__damaged_files(files, tmp_path, capsys, kind, edits):
    path = tmp_path / kind
    path.write_bytes(edit(files[kind].read_bytes(), edits))
    inspect(path, capsys)


@given(changes=CHANGES)
@examples(0.5)
def test_inspect__odd_provenance_and_meta(tmp_path, capsys, changes):
    weights, provenance = student()
    whole = dict(meta=dict(mkd_plugin=provenance, epoch=1, iter=6, time='now', seed=0, cfg='a = 1\n'))
    path = tmp_path / 'odd.pth'
    torch.save(dict(state_dict=weights, **change(whole, changes)), path)
    inspect(path, capsys)


def test_open_models__a_layer_scale_that_is_a_whole_number(tmp_path):
    weights, provenance = student()
    provenance['backbone']['layer_scale'] = 1
    path = tmp_path / 'claims.pth'
    torch.save(dict(state_dict=weights, meta=dict(mkd_plugin=provenance)), path)
    with pytest.raises(
        CheckpointError, match='claims.pth .* 2 of 20 tensors are missing. absent: layers.0.attn.gamma1'
    ):
        open_models([str(path)], known={}, device='cpu')
