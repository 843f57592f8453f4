"""Graphs for ONNX Runtime, torch.export and TorchScript."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.networks import scatter_weights
from torch import nn

from mkd_plugin.interop import deploy
from mkd_plugin.interop.deploy import export_graph
from mkd_plugin.interop.open_model import OpenedModel
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
    assert json.loads(about['pixel_mean']) == pytest.approx([value / 255 for value in MEAN])
    assert json.loads(about['image_hw']) == [32, 16]
    assert file.opset_import[0].version == deploy.OPSET
    dimensions = file.graph.input[0].type.tensor_type.shape.dim
    assert dimensions[0].dim_param
    assert [dimension.dim_value for dimension in dimensions[1:]] == [3, 32, 16]


def test_onnx__half_is_half_as_large(tmp_path):
    model = opened(position='learned')
    error, bound = export_graph(model, tmp_path / 'half.onnx', 'onnx', half=True)
    export_graph(model, tmp_path / 'whole.onnx', 'onnx')
    assert 0 < error <= bound == 2e-2
    weights = onnx.load(tmp_path / 'half.onnx').graph.initializer
    assert {entry.data_type for entry in weights if len(entry.dims) > 1} == {onnx.TensorProto.FLOAT16}


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
    ],
)
def test_export__wrong_requests(tmp_path, path, target, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        export_graph(opened(position='learned'), tmp_path / path, target, **options)
    assert list(tmp_path.iterdir()) == []


def test_export__missing_package(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'needs onnx, onnxscript, onnxruntime: pip install "mkd_plugin\[onnx\]"'):
        export_graph(opened(position='learned'), tmp_path / 'a.onnx', 'onnx')
