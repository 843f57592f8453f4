"""The hosts' own ``init_cfg`` loads converted files of other libraries."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from helpers.checkpoint_networks import tiny
from mmengine.registry import DefaultScope
from test_convert import KNOWN, save_run

from mkd_plugin.interop.convert import convert_checkpoint

ARCH = dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=192)
HOSTS = {
    'mmpretrain': dict(
        type='ImageClassifier',
        backbone=dict(out_type='avg_featmap'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=48),
    ),
    'mmseg': dict(
        type='EncoderDecoder',
        backbone=dict(out_type='featmap'),
        decode_head=dict(
            type='FCNHead', in_channels=48, channels=8, num_classes=3, num_convs=1, norm_cfg=dict(type='BN')
        ),
        test_cfg=dict(mode='whole'),
    ),
}


def model_of(host: str, path) -> torch.nn.Module:
    models = pytest.importorskip(f'{host}.models')
    registry = pytest.importorskip(f'{host}.registry').MODELS
    assert models is not None
    cfg = HOSTS[host]
    backbone = dict(
        type='mmpretrain.VisionTransformer',
        arch=ARCH,
        img_size=32,
        patch_size=8,
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'),
        **cfg['backbone'],
    )
    with DefaultScope.overwrite_default_scope(host):
        model = registry.build({**cfg, 'backbone': backbone})
        model.init_weights()
    return model


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('source', ['timm', 'hf', 'mae', 'mkd'])
def test_init_cfg__a_host_starts_from_a_converted_file(tmp_path, host, source):
    pytest.importorskip('transformers' if source == 'hf' else 'timm')
    network = tiny()
    convert_checkpoint(save_run(tmp_path / 'run.pth', network), tmp_path / 'foreign.pth', source)
    convert_checkpoint(tmp_path / 'foreign.pth', tmp_path / 'file.pth', 'mmpretrain', options=KNOWN)
    own = model_of(host, tmp_path / 'file.pth').backbone.state_dict()
    shared = [name for name in network.state_dict() if name in own]
    assert len(shared) > 20
    assert all(torch.equal(own[name], network.state_dict()[name]) for name in shared)


# In a process of its own, where mmdet is imported after mkd_plugin: mmcv's ops may not be compiled.
MMDET = """
import sys, torch
import mkd_plugin
from mmdet.registry import MODELS
import mmdet.models
from mmengine.registry import DefaultScope
file, wanted = sys.argv[1:]
arch = dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=192)
backbone = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=32, patch_size=8, final_norm=False,
    out_type='featmap', init_cfg=dict(type='Pretrained', checkpoint=file, prefix='backbone.'))
cfg = dict(type='RetinaNet', backbone=backbone,
    neck=dict(type='FPN', in_channels=[48], out_channels=16, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[1.0],
            strides=[8, 16, 32, 64, 128]), bbox_coder=dict(type='DeltaXYWHBBoxCoder')),
    train_cfg=None, test_cfg=None)
with DefaultScope.overwrite_default_scope('mmdet'):
    model = MODELS.build(cfg)
    model.init_weights()
own, wanted = model.backbone.state_dict(), torch.load(wanted, weights_only=True)
shared = [name for name in wanted if name in own]
assert len(shared) > 20 and all(torch.equal(own[name], wanted[name]) for name in shared), shared
print('equal', len(shared))
"""


@pytest.mark.parametrize(
    'source', ['timm', pytest.param('hf', marks=pytest.mark.slow), pytest.param('mae', marks=pytest.mark.slow)]
)
def test_init_cfg__mmdet_starts_from_a_converted_file(tmp_path, source):
    pytest.importorskip('transformers' if source == 'hf' else 'timm')
    if find_spec('mmdet') is None:
        pytest.skip('mmdet is not installed')
    network = tiny()
    convert_checkpoint(save_run(tmp_path / 'run.pth', network), tmp_path / 'foreign.pth', source)
    convert_checkpoint(tmp_path / 'foreign.pth', tmp_path / 'file.pth', 'mmpretrain', options=KNOWN)
    torch.save(network.state_dict(), tmp_path / 'wanted.pth')
    command = [sys.executable, '-W', 'ignore', '-c', MMDET, str(tmp_path / 'file.pth'), str(tmp_path / 'wanted.pth')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'equal' in done.stdout
