"""mmpretrain's and mmseg's own fine-tuning starts from files of other libraries, converted, by their own ``init_cfg``."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope
from networks import tiny
from test_convert import KNOWN, save_run

from mkd_plugin.checkpoint.convert import convert_checkpoint

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
