"""From a pre-training checkpoint to a classifier: what is loaded, what is new, and every parameter's rate."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import _load_checkpoint_with_prefix
from mmpretrain.models import VisionTransformer as HostViT
from mmpretrain.registry import MODELS

import mkd_plugin
from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.models.students import ClassifierViT

ARCH = dict(width=32, depth=3, num_heads=4)
HOST_ARCH = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=128)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A pre-training checkpoint with its model."""
    cfg = mkd_plugin.get_config('dbot/dbot_digits')
    cfg.model.backbone.arch = ARCH
    model = mkd_plugin.registry.MODELS.build(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():  # so that a tensor that stays at its initial value is noticed
            parameter.normal_(std=0.05)
    path = tmp_path_factory.mktemp('checkpoint') / 'stage_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), path)
    return path, model


def classifier(path: str, **backbone) -> torch.nn.Module:
    cfg = mkd_plugin.get_config('dbot/finetune/in1k/dbot-ft_vit-base-p16_8xb128-100e_in1k')
    cfg.model.backbone.update(dict(arch=ARCH, img_size=24, patch_size=4) | backbone)
    cfg.model.backbone.init_cfg.checkpoint = path
    cfg.model.head.in_channels = 32
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(cfg.model))
        model.init_weights()
        wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper))
    return model, wrapper, cfg


def test_finetuning__backbone_is_the_student(checkpoint):
    path, student = checkpoint
    model, _, _ = classifier(str(path))
    images = torch.randn(2, 3, 24, 24)
    tokens = student.backbone.eval()(images, taps=('block:-1',)).tokens('block:-1')
    expected = torch.nn.functional.layer_norm(tokens[:, 1:].mean(1), (32,), eps=1e-6)  # the new norm is the identity
    torch.testing.assert_close(model.eval().backbone(images)[0], expected)
    weight = model.head.fc.weight.detach()
    assert weight.std() == pytest.approx(0.01, rel=0.2) and not model.head.fc.bias.any()


def test_finetuning__only_the_two_norms_differ(checkpoint):
    path, _ = checkpoint
    report = load_backbone(ClassifierViT(arch=ARCH, img_size=24, patch_size=4), path)
    assert report.missing == ['ln2.weight', 'ln2.bias']
    assert report.unexpected == ['ln1.weight', 'ln1.bias']
    assert not report.resized and len(report.matched) == 3 + 1 + 3 * 12 - 0


def test_finetuning__larger_images_resize_positions(checkpoint):
    path, _ = checkpoint
    report = load_backbone(ClassifierViT(arch=ARCH, img_size=48, patch_size=4), path)
    assert report.resized == ['pos_embed']


def test_finetuning__wrong_architecture_is_refused(checkpoint):
    path, _ = checkpoint
    with pytest.raises(ValueError, match=r'holds another network than this one: width 32 in the file and 64 here'):
        classifier(str(path), arch=dict(width=64, depth=3, num_heads=4))


def test_finetuning__rate_and_decay_of_every_parameter(checkpoint):
    """scale = decay^(depth + 1 − i): i = 0 for patch, cls, position; block k = k; norm and head = depth + 1."""
    model, wrapper, cfg = classifier(str(checkpoint[0]))
    decay, depth, rate = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate, 3, cfg.optim_wrapper.optimizer.lr
    group_of = {parameter: group for group in wrapper.param_groups for parameter in group['params']}
    groups = {name: group_of[parameter] for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if name.startswith('backbone.layers.'):
            layer = int(name.split('.')[2]) + 1
        else:
            layer = depth + 1 if name.startswith(('backbone.ln2', 'head.')) else 0
        assert groups[name]['lr'] == pytest.approx(rate * decay ** (depth + 1 - layer)), name
        undecayed = parameter.ndim == 1 or name in ('backbone.cls_token', 'backbone.pos_embed')
        assert groups[name]['weight_decay'] == (0 if undecayed else 0.05), name


def test_student__loads_into_mmpretrains_vit(checkpoint):
    """Through the host's own loading of prefix='backbone.': no key missing or unexpected, and the same output."""
    path, student = checkpoint
    weights = _load_checkpoint_with_prefix('backbone.', str(path))
    host = HostViT(arch=HOST_ARCH, img_size=24, patch_size=4, out_type='raw')
    assert host.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 24, 24)
    expected = student.backbone.eval()(images).tokens('output')
    host.eval()
    torch.testing.assert_close(host(images)[0], expected, rtol=1e-4, atol=1e-5)


def test_student__loads_into_mmpretrains_vit_for_finetuning(checkpoint):
    path, _ = checkpoint
    weights = _load_checkpoint_with_prefix('backbone.', str(path))
    host = HostViT(arch=HOST_ARCH, img_size=24, patch_size=4, out_type='avg_featmap', final_norm=False)
    missing, unexpected = host.load_state_dict(weights, strict=False)
    assert set(missing) == {'ln2.weight', 'ln2.bias'} and set(unexpected) == {'ln1.weight', 'ln1.bias'}
