"""Conversion of files is checked, atomic and records its source; nothing is written if it fails."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_networks import TINY, tiny
from safetensors import safe_open
from torch import nn

import mkd_plugin
from mkd_plugin.checkpoint import load_backbone, read_checkpoint
from mkd_plugin.checkpoint.read import weights_of
from mkd_plugin.checkpoint.releases import RELEASES
from mkd_plugin.interop.convert import convert_checkpoint
from mkd_plugin.interop.export import PRE_NORM, PROJECTION, QUICK, REGISTERS
from mkd_plugin.models.vit import VisionTransformer

ROOT = Path(__file__).resolve().parents[3]
KNOWN = dict(num_heads=4)


def save_run(path: Path, network: VisionTransformer, **more) -> Path:
    """Save a checkpoint as a run writes it: student, a stage's teacher, a decoder."""
    state = {f'backbone.{name}': value for name, value in network.state_dict().items()}
    about = dict(
        version='0', stage=1, backbone=network.options, pixel_mean=[1.0] * 3, pixel_std=[2.0] * 3, teachers=['boot']
    )
    torch.save(dict(state_dict={**state, **more}, meta=dict(mkd_plugin=about)), path)
    return path


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize('target', ['timm', 'mmpretrain', 'hf', 'mae', 'mkd'])
def test_convert_checkpoint__there_and_back(tmp_path, target):
    pytest.importorskip('transformers' if target == 'hf' else 'timm')
    network = tiny()
    source = save_run(tmp_path / 'run.pth', network)
    done = convert_checkpoint(source, tmp_path / 'there.pth', target)
    assert [error is not None and error < 2e-6 for _, error in done.checks][1:] == ([] if target == 'mkd' else [True])
    back = convert_checkpoint(tmp_path / 'there.pth', tmp_path / 'back.safetensors', 'mkd', options=KNOWN)
    assert back.report.missing == back.report.unexpected == []
    found = weights_of(read_checkpoint(tmp_path / 'back.safetensors'), 'back')
    assert same(found, {f'backbone.{name}': value for name, value in network.state_dict().items()})
    assert not list(tmp_path.glob('*.tmp'))


def test_convert_checkpoint__says_where_it_comes_from(tmp_path):
    source = save_run(tmp_path / 'run.pth', tiny())
    convert_checkpoint(source, tmp_path / 'file.safetensors', 'timm')
    with safe_open(tmp_path / 'file.safetensors', 'pt') as file:
        about = json.loads(file.metadata()['mkd_plugin'])
    assert about['source']['file'] == 'run.pth' and about['source']['prefix'] == 'backbone.'
    assert about['source']['sha256'] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert about['pixel_mean'] == [1.0] * 3 and about['backbone']['arch']['num_heads'] == 4


def test_convert_checkpoint__student_that_can_be_used_at_once(tmp_path):
    timm = pytest.importorskip('timm')
    network = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0
    )
    torch.save(dict(model=network.eval().state_dict()), tmp_path / 'file.pth')
    convert_checkpoint(tmp_path / 'file.pth', tmp_path / 'bare.pth', 'mkd', options=KNOWN)
    with pytest.raises(ValueError, match='does not say which pixel statistics'):
        mkd_plugin.load_student(tmp_path / 'bare.pth')
    release = RELEASES['dino_base']
    small = dict(network={**release.network, 'arch': TINY['arch'], 'img_size': 32, 'patch_size': 8})
    convert_checkpoint(tmp_path / 'file.pth', tmp_path / 'whole.pth', 'mkd', release=replace(release, **small))
    student = mkd_plugin.load_student(tmp_path / 'whole.pth')
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        wanted = network.forward_features(student.normalise(images))
    torch.testing.assert_close(student.features(images, tap='output', pool='none'), wanted, rtol=1e-4, atol=1e-5)


def replace(release, **changes):
    """Change fields of a release."""
    from dataclasses import replace as replaced

    return replaced(release, **changes)


def test_convert_checkpoint__folder_for_hugging_face(tmp_path):
    transformers = pytest.importorskip('transformers')
    network = tiny(frozenset({PRE_NORM, PROJECTION, QUICK}))
    convert_checkpoint(save_run(tmp_path / 'run.pth', network), tmp_path / 'folder', 'hf')
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / 'folder').eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = network(images, taps=('projected',)).tokens('projected')[:, 0]
        torch.testing.assert_close(theirs(images).image_embeds, wanted, rtol=1e-4, atol=1e-4)
    ours = VisionTransformer(**network.options)
    assert load_backbone(ours, tmp_path / 'folder').missing == []
    back = convert_checkpoint(
        tmp_path / 'folder', tmp_path / 'back.pth', 'mkd'
    )  # heads, eps and image as its config says
    assert back.options == {**network.options, 'layer_scale': None}
    assert same(ours.state_dict(), network.state_dict())
    (tmp_path / 'mine').mkdir()
    with pytest.raises(ValueError, match='exists and is not a folder of weights'):
        convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'mine', 'hf')


@pytest.mark.parametrize('size', [48, (32, 48)], ids=str)
def test_convert_checkpoint__resizes(tmp_path, size):
    timm = pytest.importorskip('timm')
    network = tiny()
    done = convert_checkpoint(save_run(tmp_path / 'run.pth', network), tmp_path / 'file.pth', 'timm', img_size=size)
    assert done.report.resized == ['pos_embed']
    grid = [side // 8 for side in ((size, size) if isinstance(size, int) else size)]
    found = weights_of(read_checkpoint(tmp_path / 'file.pth'), 'file')['pos_embed']
    assert torch.equal(found, timm.layers.resample_abs_pos_embed(network.pos_embed, grid))


def test_convert_checkpoint__parts_of_a_run(tmp_path):
    student, teacher = tiny(), tiny()
    more = {f'teachers.boot.network.{name}': value for name, value in teacher.state_dict().items()}
    source = save_run(tmp_path / 'run.pth', student, **more)
    for part, network in (('student', student), ('teacher', teacher)):
        convert_checkpoint(source, tmp_path / f'{part}.pth', 'mkd', part=part)
        found = weights_of(read_checkpoint(tmp_path / f'{part}.pth'), part)
        assert same(found, {f'backbone.{name}': value for name, value in network.state_dict().items()})
    with pytest.raises(ValueError, match=r"part='teacher' needs one teacher in the file, and there are \[\]"):
        convert_checkpoint(tmp_path / 'student.pth', tmp_path / 'x.pth', 'mkd', part='teacher')
    with pytest.raises(ValueError, match="part='head': use one of"):
        convert_checkpoint(source, tmp_path / 'x.pth', 'mkd', part='head')
    assert not (tmp_path / 'x.pth').exists()


def test_convert_checkpoint__decoder_to_mae_and_back(tmp_path, build_distiller):
    model = build_distiller('mae').float()
    about = dict(version='0', backbone=model.backbone.options, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, teachers=[])
    torch.save(dict(state_dict=model.state_dict(), meta=dict(mkd_plugin=about)), tmp_path / 'run.pth')
    convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'mae.pth', 'mae', part='decoder')
    named = read_checkpoint(tmp_path / 'mae.pth')['model']
    assert {'decoder_blocks.1.attn.qkv.weight', 'decoder_pred.bias', 'mask_token', 'decoder_pos_embed'} <= set(named)
    convert_checkpoint(tmp_path / 'mae.pth', tmp_path / 'back.pth', 'mkd', part='decoder', options=KNOWN)
    found = weights_of(read_checkpoint(tmp_path / 'back.pth'), 'back')
    wanted = {name: value for name, value in model.state_dict().items() if name in found}
    assert same(found, wanted) and any(name.startswith('objectives.pixel.heads.0.') for name in found)
    with pytest.raises(ValueError, match="part='decoder' can be written as 'mae' or 'mkd', not as 'timm'"):
        convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'x.pth', 'timm', part='decoder')


def test_convert_checkpoint__refuses_to_write_what_computes_something_else(tmp_path):
    """A target that cannot hold the network is refused."""
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8
    )
    theirs = transformers.ViTModel(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / 'folder')
    done = convert_checkpoint(tmp_path / 'folder', tmp_path / 'file.pth', 'mmpretrain')
    assert done.options['norm_eps'] == 1e-12 and done.options['arch']['num_heads'] == 4
    network = tiny(frozenset({REGISTERS}))
    source = save_run(tmp_path / 'run.pth', network)
    with pytest.raises(ValueError, match='has no place for register tokens'):
        convert_checkpoint(source, tmp_path / 'x.pth', 'mmpretrain')
    assert not (tmp_path / 'x.pth').exists()


def test_convert_checkpoint__difference_is_said_and_nothing_written(tmp_path, monkeypatch):
    from mkd_plugin.interop import convert

    monkeypatch.setattr(convert, 'largest_error', lambda *_: 3e-4)
    source = save_run(tmp_path / 'run.pth', tiny())
    with pytest.raises(
        ValueError,
        match='timm VisionTransformer differs from ours by 3.0e-04 of .*, 1e-04 is allowed. Nothing was written',
    ):
        convert_checkpoint(source, tmp_path / 'x.pth', 'timm')
    assert list(tmp_path.iterdir()) == [source]


def test_write_weights__interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    from mkd_plugin.checkpoint import write

    (tmp_path / 'file.pth').write_text('old')

    def full(*_):
        raise OSError('No space left on device')

    monkeypatch.setattr(write.torch, 'save', full)
    with pytest.raises(OSError, match='No space'):
        write.write_weights(tmp_path / 'file.pth', dict(x=torch.ones(1)), {})
    assert (tmp_path / 'file.pth').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('prefix', ['backbone.', None])
def test_init_cfg__mmpretrains_classifier_starts_from_a_converted_file(tmp_path, prefix):
    """The host initialises its own backbone from the file."""
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.registry import MODELS

    network = tiny()
    convert_checkpoint(save_run(tmp_path / 'run.pth', network), tmp_path / 'file.pth', 'mmpretrain')
    arch = dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=192)
    backbone = dict(
        type='VisionTransformer', arch=arch, img_size=32, patch_size=8, out_type='avg_featmap', final_norm=False
    )
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'), prefix='backbone.')
    model = MODELS.build(
        dict(type='ImageClassifier', backbone={**backbone, 'init_cfg': pretrained} if prefix else backbone)
    )
    before = model.backbone.layers[0].attn.qkv.weight.clone()
    model.init_weights()
    loaded = torch.equal(model.backbone.layers[0].attn.qkv.weight, network.layers[0].attn.qkv.weight)
    assert loaded == (prefix is not None) and (loaded or not torch.equal(before, network.layers[0].attn.qkv.weight))
    own = model.backbone.state_dict()
    if prefix:
        assert all(torch.equal(own[name], value) for name, value in network.state_dict().items() if name in own)


def run_tool(monkeypatch, *arguments) -> int:
    """Run the command line in this process and return its exit code."""
    tool = ROOT / 'tools/convert_checkpoint.py'
    monkeypatch.setattr(sys, 'argv', [str(part) for part in (tool, *arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name='__main__')
    return end.value.code


def test_convert_checkpoint_tool__prints_the_table(tmp_path, monkeypatch, capsys):
    pytest.importorskip('timm')
    source = save_run(tmp_path / 'run.pth', tiny())
    monkeypatch.setenv('COLUMNS', '200')
    assert run_tool(monkeypatch, source, tmp_path / 'file.safetensors', '--to', 'timm', '--img-size', 32, 48) == 0
    told = capsys.readouterr().out
    for line in (
        'resized: loaded after resizing to the grid',
        'target: timm VisionTransformer: differs by',
        'wrote ',
    ):
        assert line in told
    assert (tmp_path / 'file.safetensors').is_file()
    assert run_tool(monkeypatch, tmp_path / 'none.pth', tmp_path / 'x.pth', '--to', 'timm') == 2
    assert 'There is no checkpoint' in capsys.readouterr().err
    assert run_tool(monkeypatch, source, tmp_path / 'x.pth', '--to', 'timm', '--img-size', 1, 2, 3) == 2


def test_backbone__is_copied_as_it_is_and_finite(tmp_path):
    state, about = {'backbone.network.stem.weight': torch.tensor([1.0, float('nan')])}, dict(version='0', network='Own')
    torch.save(dict(state_dict=state, meta=dict(mkd_plugin=about)), tmp_path / 'run.pth')
    given = tmp_path / 'run.pth', tmp_path / 'file.pth', 'backbone'
    with pytest.raises(ValueError, match='1 weights hold NaN or infinity'):
        convert_checkpoint(*given)
    for options in (dict(img_size=32), dict(part='teacher'), dict(prefix='backbone.')):
        with pytest.raises(ValueError, match="'backbone' copies the student as it is: leave part, prefix, img_size"):
            convert_checkpoint(*given, **options)
    assert not (tmp_path / 'file.pth').exists()
    assert convert_checkpoint(*given, allow_nonfinite=True).nonfinite == ['stem.weight']


def test_teacher__of_any_name_is_found(tmp_path):
    network = tiny()
    source = save_run(tmp_path / 'run.pth', network)
    saved = torch.load(source)
    teacher = {name: 2 * value for name, value in network.state_dict().items()}
    saved['state_dict'] |= {f'teachers.clip-b.network.{name}': value for name, value in teacher.items()}
    torch.save(saved, source)
    convert_checkpoint(source, tmp_path / 'file.pth', 'mkd', part='teacher')
    written = torch.load(tmp_path / 'file.pth')['state_dict']
    wanted = {f'backbone.{name}': value for name, value in teacher.items()}
    torch.testing.assert_close(dict(written), wanted, rtol=0, atol=0)
