"""Graphs for ONNX Runtime, torch.export and TorchScript."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.networks import scatter_weights
from timm.layers import resample_abs_pos_embed
from torch import nn

from mkd_plugin.interop import deploy
from mkd_plugin.interop.deploy import export_graph
from mkd_plugin.interop.open_model import OpenedModel
from mkd_plugin.interop.student import LoadedStudent
from mkd_plugin.models.vit import VisionTransformer

ARCH = dict(width=32, depth=2, num_heads=2)
NETWORKS = dict(
    learned=dict(position='learned'),
    beit=dict(position='none', relative_position='shared', layer_scale=0.1),
    clip=dict(position='learned', pre_norm=True, activation='quick_gelu', projection=24),
)
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 70.0, 80.0]


def opened(**options):
    network = scatter_weights(VisionTransformer(arch=ARCH, img_size=(32, 16), patch_size=8, **options)).eval()
    return OpenedModel('small', 'small.pth', 'small', network, (MEAN, STD), 'ours')


def features_by_hand(model, images, tap, pool):
    normalised = torch.stack([(images[:, c] * 255 - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    tokens = model.network(normalised, taps=(tap,)).tokens(tap)
    return dict(none=tokens, cls=tokens[:, 0], mean=tokens[:, 1:].mean(dim=1))[pool]


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('pool', ['mean', 'none'])
def test_onnx__equals_the_network_at_any_batch(tmp_path, network, pool):
    model, path, tap = opened(**NETWORKS[network]), tmp_path / 'a.onnx', 'projected' if network == 'clip' else 'output'
    error, bound = export_graph(model, path, 'onnx', tap=tap, pool=pool)
    assert error <= bound == 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for batch in (1, 3, 8):
        images = torch.rand(batch, 3, 32, 16)
        with torch.no_grad():
            wanted = features_by_hand(model, images, tap, pool)
        found = session.run(None, {'images': images.numpy()})[0]
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))


def test_onnx__says_what_it_takes(tmp_path):
    export_graph(opened(position='learned'), tmp_path / 'a.onnx', 'onnx')
    file = onnx.load(tmp_path / 'a.onnx')
    about = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(about['pixel_mean']) == MEAN
    assert json.loads(about['image_hw']) == [32, 16]
    assert file.opset_import[0].version == deploy.OPSET
    dimensions = file.graph.input[0].type.tensor_type.shape.dim
    assert dimensions[0].dim_param
    assert [dimension.dim_value for dimension in dimensions[1:]] == [3, 32, 16]


@pytest.fixture
def narrow_umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize(('target', 'position'), [('onnx', 'learned'), ('torch', 'sincos'), ('torchscript', 'learned')])
def test_any_size__equals_the_network_resized_to_it(tmp_path, narrow_umask, target, position):
    model, path = opened(position=position), tmp_path / f'a{deploy.SUFFIXES[target]}'
    assert export_graph(model, path, target, pool='none', any_size=True)[0] <= 1e-4
    assert oct(path.stat().st_mode & 0o777) == '0o640'
    run = deploy.READERS[target](path)
    for batch, height, width in ((1, 32, 16), (3, 64, 64), (2, 24, 56), (1, 16, 104)):
        images = torch.rand(batch, 3, height, width)
        normalised = torch.stack([(images[:, c] * 255 - MEAN[c]) / STD[c] for c in range(3)], dim=1)
        wanted = resized_by_timm(model.network, height, width)(normalised, taps=('block:-1',)).tokens('block:-1')
        with torch.no_grad():
            torch.testing.assert_close(run(images), wanted.detach(), rtol=0, atol=1e-4 * float(wanted.abs().max()))


def resized_by_timm(network, height, width):
    other = VisionTransformer(**{**network.options, 'img_size': (height, width)}).eval()
    state = network.state_dict()
    grid = [height // 8, width // 8]
    state['pos_embed'] = resample_abs_pos_embed(state['pos_embed'], grid, list(network.grid))
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize('network', NETWORKS)
def test_size__is_fixed_to_another(tmp_path, network):
    model, path = opened(**NETWORKS[network]), tmp_path / 'a.pt'
    export_graph(model, path, 'torchscript', image_hw=(24, 40))
    images = torch.rand(3, 3, 24, 40)
    student = LoadedStudent(model.network, MEAN, STD)
    torch.testing.assert_close(
        deploy.READERS['torchscript'](path)(images), student.features(images), rtol=1e-4, atol=1e-5
    )


def test_onnx__half_of_any_size(tmp_path):
    error, bound = export_graph(opened(position='learned'), tmp_path / 'a.onnx', 'onnx', half=True, any_size=True)
    assert 0 < error <= bound == 2e-2
    file = onnx.load(tmp_path / 'a.onnx')
    matrices = {entry.data_type for entry in file.graph.initializer if len(entry.dims) == 2}
    assert matrices == {onnx.TensorProto.FLOAT16}
    assert {entry.key: entry.value for entry in file.metadata_props}['image_hw'] == '"any"'
    dimensions = file.graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_param for dimension in dimensions] == ['batch', '', '8*rows', '8*columns']


@pytest.mark.parametrize('target', ['torch', 'torchscript'])
def test_torch__equals_the_network_at_any_batch(tmp_path, target):
    model, path = opened(position='learned'), tmp_path / f'a{deploy.SUFFIXES[target]}'
    assert export_graph(model, path, target, pool='cls')[0] <= 1e-6
    images = torch.rand(7, 3, 32, 16)
    with torch.no_grad():
        found = deploy.READERS[target](path)(images)
        torch.testing.assert_close(found, features_by_hand(model, images, 'block:-1', 'cls'), rtol=1e-4, atol=1e-5)


class Broken(nn.Module):
    def forward(self, images):
        return torch.full((images.shape[0], 32), float('nan'))


def test_export__a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(deploy.READERS, 'torch', lambda path: Broken())
    with pytest.raises(ValueError, match='was not written: its output differs from the network by nan'):
        export_graph(opened(position='learned'), tmp_path / 'a.pt2', 'torch')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('path', 'target', 'options', 'sentence'),
    [
        ('a.onnx', 'tensorrt', {}, 'use one of onnx, torch, torchscript'),
        ('a.pth', 'onnx', {}, 'ends in .onnx'),
        ('no/a.onnx', 'onnx', {}, 'does not exist'),
        ('a.pt2', 'torch', dict(half=True), '--half is for --to onnx'),
        ('a.pt2', 'torch', dict(pool='max'), "use 'cls', 'mean' or 'none'"),
        ('a.pt2', 'torch', dict(tap='block:9'), 'out of range'),
        ('a.pt2', 'torch', dict(tap='projected'), 'has no projection'),
        ('a.pt', 'torchscript', dict(tap='relation:0'), "relations cannot be pooled. Use 'block:i'"),
        ('a.pt2', 'torch', dict(image_hw=(20, 16)), 'The nearest size that can is 16 × 16'),
    ],
)
def test_export__wrong_requests(tmp_path, path, target, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        export_graph(opened(position='learned'), tmp_path / path, target, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('relative', ['shared', 'per_block'])
def test_any_size__refuses_relative_positions(tmp_path, relative):
    with pytest.raises(
        ValueError, match='relative position bias, which a graph cannot resize. Give one size with --img-size'
    ):
        export_graph(opened(relative_position=relative), tmp_path / 'a.onnx', 'onnx', any_size=True)


def test_export__network_without_final_norm(tmp_path):
    model = replace(opened(position='learned'), final_norm=False)
    with pytest.raises(ValueError, match="small.pth has no norm after its last block, so there is no 'output'"):
        export_graph(model, tmp_path / 'a.onnx', 'onnx', tap='output')


def test_export__never_replaces_a_folder(tmp_path):
    (tmp_path / 'a.onnx').mkdir()
    (tmp_path / 'a.onnx' / 'kept').touch()
    with pytest.raises(ValueError, match='a.onnx is a folder'):
        export_graph(opened(position='learned'), tmp_path / 'a.onnx', 'onnx')
    assert (tmp_path / 'a.onnx' / 'kept').exists()


def test_export__missing_package(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'needs onnx, onnxscript, onnxruntime: pip install "mkd_plugin\[onnx\]"'):
        export_graph(opened(position='learned'), tmp_path / 'a.onnx', 'onnx')
