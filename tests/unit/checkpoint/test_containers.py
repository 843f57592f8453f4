"""Formats of files other than torch's (safetensors, Hugging Face folders, TorchScript archives), and hostile files."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_networks import TINY, tiny
from helpers.hostile_files import WEIGHTS, Hostile
from safetensors.torch import save_file
from torch import nn

from mkd_plugin.checkpoint import load_backbone, read_checkpoint
from mkd_plugin.checkpoint.read import weights_of
from mkd_plugin.models.vit import VisionTransformer


def same(found, wanted=WEIGHTS):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_read_checkpoint__safetensors(tmp_path):
    about = json.dumps(dict(backbone=dict(img_size=32)))
    save_file(WEIGHTS, tmp_path / 'file.safetensors', {'format': 'pt', 'mkd_plugin': about})
    found = read_checkpoint(tmp_path / 'file.safetensors')
    assert same(weights_of(found, 'file')) and found['meta'] == {'mkd_plugin': {'backbone': {'img_size': 32}}}


@pytest.mark.parametrize('share', [0.3, 0.9, 0.99])
def test_read_checkpoint__truncated_safetensors(tmp_path, share):
    path = tmp_path / 'file.safetensors'
    save_file(dict(weight=torch.randn(50, 50)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'):
        read_checkpoint(path)


def test_read_checkpoint__folder_of_hugging_face(tmp_path):
    save_file(WEIGHTS, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text('{"image_size": 32}')
    found = read_checkpoint(tmp_path)
    assert same(found['state_dict']) and found['meta'] == {'hf_config': {'image_size': 32}}


def test_read_checkpoint__folder_with_several_files(tmp_path):
    save_file(dict(weight=WEIGHTS['weight']), tmp_path / 'one.safetensors')
    torch.save(dict(bias=WEIGHTS['bias']), tmp_path / 'two.bin')
    index = dict(weight_map=dict(weight='one.safetensors', bias='two.bin'))
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert same(read_checkpoint(tmp_path)['state_dict'])
    index['weight_map']['bias'] = '../two.bin'
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match='names files outside of its folder'):
        read_checkpoint(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text('{')
    with pytest.raises(ValueError, match='cannot be read as JSON'):
        read_checkpoint(tmp_path)


def test_read_checkpoint__lazy_gives_the_same(tmp_path):
    for legacy in (False, True):
        torch.save(WEIGHTS, tmp_path / 'file.pth', _use_new_zipfile_serialization=not legacy)
        assert same(read_checkpoint(tmp_path / 'file.pth', lazy=True))


def test_read_checkpoint__command_lines_are_harmless(tmp_path):
    """MAE, DINO and SLIP store their command lines."""
    torch.save(dict(model=WEIGHTS, args=argparse.Namespace(lr=0.1)), tmp_path / 'file.pth')
    found = read_checkpoint(tmp_path / 'file.pth')
    assert found['args'].lr == 0.1 and same(weights_of(found, 'file'))


def test_weights_of__two_state_dicts():
    found = weights_of(dict(student=WEIGHTS, teacher=WEIGHTS, epoch=3, optimizer=dict(x=torch.ones(1))), 'file')
    assert set(found) == {'student.weight', 'student.bias', 'teacher.weight', 'teacher.bias'}


def test_weights_of__optimizer_is_called_one():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict()
    for checkpoint in (optimizer, dict(optimizer=optimizer)):
        with pytest.raises(ValueError, match='holds no weights: .* It is the state of an optimizer'):
            weights_of(checkpoint, 'file')


class Tower(nn.Module):
    """A module with submodules, a parameter, a buffer and plain values."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.scale = nn.Parameter(torch.randn(4, 2).t())  # not contiguous
        self.register_buffer('size', torch.tensor(7))
        self.names = ['a', 'b']

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * self.scale.sum()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_read_checkpoint__torchscript_archive(tmp_path, dtype):
    tower = Tower().to(dtype)
    torch.jit.save(torch.jit.script(tower), tmp_path / 'file.pt')
    found = weights_of(read_checkpoint(tmp_path / 'file.pt'), 'file')
    assert same(found, tower.state_dict())


def test_load_backbone__openais_clip_as_an_archive(tmp_path):
    """The archive also holds parts of other towers and a number."""
    open_clip = pytest.importorskip('open_clip')
    quick = open_clip.transformer.QuickGELU
    visual = open_clip.transformer.VisionTransformer(32, 8, 48, 2, 4, 4.0, output_dim=24, act_layer=quick).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = visual(images)
    torch.jit.save(torch.jit.trace(Clip(visual), images, check_trace=False), tmp_path / 'file.pt')
    ours = VisionTransformer(
        **TINY, pre_norm=True, norm_eps=1e-5, activation='quick_gelu', projection=24
    ).eval()  # fmt: skip
    report = load_backbone(ours, tmp_path / 'file.pt')
    assert report.prefix == 'visual.' and report.unexpected == []
    assert 'input_resolution' in report.dropped
    with torch.no_grad():
        found = ours(images, taps=('projected',)).tokens('projected')[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class Clip(nn.Module):
    """The parts of OpenAI's module that a trace needs."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual, self.transformer = visual, nn.Linear(2, 2)
        self.register_buffer('input_resolution', torch.tensor(32))

    def forward(self, images):
        return self.visual(images) + 0 * self.transformer(torch.ones(1, 2)).sum() * self.input_resolution


def archive_with(path: Path, content: bytes) -> Path:
    """Write a TorchScript archive with this pickle."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('file/data.pkl', content)
        archive.writestr('file/constants.pkl', pickle.dumps(()))
    return path


def test_read_checkpoint__hostile_archive_runs_nothing(tmp_path):
    path = archive_with(tmp_path / 'file.pt', pickle.dumps(Hostile(tmp_path / 'ran')))
    with pytest.raises(ValueError, match=r'was refused: .*\(pathlib\..*Nothing in it was run'):
        read_checkpoint(path)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'function',
    [
        ('builtins', 'eval'),
        ('os', 'system'),
        ('torch', 'load'),
        ('torch.jit', 'load'),
        ('torch._utils', '_rebuild_xla_tensor'),
    ],
    ids='.'.join,
)
def test_read_checkpoint__archive_reaches_no_function(tmp_path, function):
    module, name = function
    content = b'\x80\x02c' + f'{module}\n{name}\n'.encode() + b'X\x01\x00\x00\x001\x85R.'
    with pytest.raises(ValueError, match=f'GLOBAL {module}.{name}|{module}.{name}'):
        read_checkpoint(archive_with(tmp_path / 'file.pt', content))


@pytest.mark.parametrize('name', ['file/data/0', 'file/code/code.py'])
def test_read_checkpoint__bomb_is_refused(tmp_path, name):
    """A zip file that unpacks to a thousand times its size."""
    torch.save(WEIGHTS, tmp_path / 'file.pth')
    with zipfile.ZipFile(tmp_path / 'bomb.pth', 'w') as bomb:
        bomb.writestr('file/data.pkl', zipfile.ZipFile(tmp_path / 'file.pth').read('file/data.pkl'))
        bomb.writestr(name, bytes(100 * 2**20), zipfile.ZIP_DEFLATED)
    assert (tmp_path / 'bomb.pth').stat().st_size < 2**20
    with pytest.raises(ValueError, match='would unpack to 104,8.* so this is no checkpoint'):
        read_checkpoint(tmp_path / 'bomb.pth')


def test_read_checkpoint__content_of_a_store(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'file.pth')
    assert same(read_checkpoint('s3://x', content=io.BytesIO((tmp_path / 'file.pth').read_bytes())))


def test_load_backbone__state_dict_is_copied_out_of_a_lazy_file(tmp_path):
    """Overwriting the file later must not change the network."""
    source = tiny()
    torch.save(source.state_dict(), tmp_path / 'file.pth')
    network = VisionTransformer(**TINY)
    load_backbone(network, tmp_path / 'file.pth')
    (tmp_path / 'file.pth').write_bytes(bytes((tmp_path / 'file.pth').stat().st_size))
    assert same(network.state_dict(), source.state_dict())
