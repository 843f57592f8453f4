"""Detector, segmentor and classifier of the hosts start from a student that learned from a DINOv3 of timm, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from helpers.families import SIDE, batch_of, model_config
from helpers.tiny_dense import make_narrow
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mkd_plugin
from mkd_plugin.engine.provenance import describe
from mkd_plugin.interop.convert import convert_checkpoint
from mkd_plugin.interop.open_model import open_model
from mkd_plugin.interop.specs import parse_specs
from mkd_plugin.models.protocols import Progress
from mkd_plugin.utils.configs import get_config

TINY_SWIN = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4])


def learn(config: str, network: dict, path: Path) -> tuple[nn.Module, list[float]]:
    """Take three steps of a shipped config with a tiny DINOv3, and save what a run saves."""
    cfg = get_config(config).model
    cfg.backbone.update(img_size=SIDE, network={**cfg.backbone.network, **network})
    cfg.teachers.dinov3.update(checkpoint=None, seed=0, options=dict(depth=2, embed_dim=32, num_heads=2))
    torch.manual_seed(0)
    model = MODELS.build(cfg, default_args=dict(data_preprocessor=get_config(config).data_preprocessor))
    model.init_weights()
    model.train().begin_training(Progress(0, 3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    images, losses = torch.randn(4, 3, SIDE, SIDE), []
    for _ in range(3):
        loss = model.loss(images)['loss_feature']
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    torch.save(dict(state_dict=model.state_dict(), meta=dict(mkd_plugin=describe(model))), path)
    return model.backbone.network, losses


def host_model(name: str, network: dict, start: dict) -> tuple[str, nn.Module]:
    """The model of a host's own config, which starts from a file."""
    host, model = model_config(name)
    model.backbone.update(network, init_cfg=dict(type='Pretrained', **start))
    sizes = {96: 8, 192: 16, 384: 32, 768: 64, 512: 16, 256: 16} if network else {}
    for part in ('decode_head', 'auxiliary_head'):
        make_narrow(model.get(part), sizes)
    with DefaultScope.overwrite_default_scope(host):
        built = MODELS.build(model)
        built.init_weights()
    return host, revert_sync_batchnorm(built).train()


def take_a_step(host: str, model: nn.Module) -> None:
    with DefaultScope.overwrite_default_scope(host):
        loss, _ = model.parse_losses(model(**batch_of(model, host), mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    moved = [p for p in model.backbone.parameters() if p.requires_grad]
    assert moved and all(p.grad is not None for p in moved)


RESNET = 'any_student/resnet-18_teacher-dinov3-small_8xb128-100e_in1k'
SWIN = 'any_student/swin-tiny_teacher-dinov3-small_8xb128-100e_in1k'
HOSTS = {
    'mmdet': (RESNET, 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', {}),
    'mmseg': (SWIN, 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', TINY_SWIN),
}


@pytest.mark.parametrize('host', HOSTS)
def test_host__takes_a_step_from_a_student_that_learned_from_dinov3(tmp_path, host):
    pytest.importorskip(f'{host}.models')
    config, model, network = HOSTS[host]
    student, losses = learn(config, network, tmp_path / 'run.pth')
    assert losses[-1] < losses[0]
    convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'own.pth', 'backbone')
    weights = torch.load(tmp_path / 'own.pth', weights_only=True)['state_dict']
    starts = [dict(checkpoint=str(tmp_path / 'own.pth'))]
    if host == 'mmdet':  # mmseg's Swin loads by itself, and knows no prefix
        starts.append(dict(checkpoint=str(tmp_path / 'run.pth'), prefix='backbone.network.'))
    for start in starts:
        _, built = host_model(model, network, start)
        found = built.backbone.state_dict()
        assert found.keys() == weights.keys() == student.state_dict().keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)
        built.backbone.load_state_dict(weights, strict=True)
    take_a_step(host, built)


def test_files__start_timm_and_mmpretrain_and_are_refused_as_a_vit(tmp_path):
    student, _ = learn(RESNET, {}, tmp_path / 'run.pth')
    done = convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'own.safetensors', 'backbone')
    assert len(done.report.matched) == len(student.state_dict()) and done.options == {}
    network = timm.create_model('resnet18', num_classes=0, checkpoint_path=str(tmp_path / 'own.safetensors')).eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    student.eval()
    torch.testing.assert_close(network.forward_features(images), student(images)[0])
    (spec,) = parse_specs([str(tmp_path / 'run.pth')])
    for use in (
        lambda: mkd_plugin.load_student(tmp_path / 'run.pth'),
        lambda: open_model(spec, known={}, device='cpu'),
        lambda: convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'x.pth', 'timm'),
    ):
        with pytest.raises(
            ValueError, match="student of the class 'mmpretrain.ResNet', not our ViT. Write a file for that class"
        ):
            use()
    assert not (tmp_path / 'x.pth').exists()


def test_convert__backbone_refuses_a_vit(tmp_path):
    torch.save(dict(state_dict={'backbone.cls_token': torch.zeros(1, 1, 8)}), tmp_path / 'vit.pth')
    with pytest.raises(ValueError, match='holds no BackboneStudent'):
        convert_checkpoint(tmp_path / 'vit.pth', tmp_path / 'x.pth', 'backbone')
