"""The fine-tuning recipes start from a symmetric student's checkpoint and from CLIP's."""

from __future__ import annotations

import torch
from helpers.networks import scatter_weights
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

import mkd_plugin
from mkd_plugin.models.vit import VisionTransformer

ARCH = dict(width=32, depth=3, num_heads=4)
SIZES = dict(arch=ARCH, img_size=24, patch_size=4)
TABLE = 'relative_position_bias_table'


def classifier(recipe: str, checkpoint: str, **backbone) -> torch.nn.Module:
    """Build the recipe's model at a tiny size and load its ``init_cfg``."""
    cfg = mkd_plugin.get_config(recipe)
    cfg.model.backbone.update(**SIZES, **backbone)
    cfg.model.backbone.init_cfg.checkpoint = checkpoint
    cfg.model.head.in_channels = ARCH['width']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    return model.eval()


def test_maskdistill_finetuning__every_block_starts_from_the_shared_table(tmp_path):
    """Layer scale and table are the student's, and so are the features."""
    cfg = mkd_plugin.get_config('maskdistill/maskdistill_digits')
    cfg.model.backbone.arch = ARCH
    pretrained = scatter_weights(mkd_plugin.registry.MODELS.build(cfg.model)).eval()
    torch.save(dict(state_dict=pretrained.state_dict()), tmp_path / 'epoch_1.pth')
    recipe = 'maskdistill/finetune/in1k/maskdistill-ft_vit-base-p16_8xb128-100e_in1k'
    tuned = classifier(recipe, str(tmp_path / 'epoch_1.pth'))
    student, backbone = pretrained.backbone, tuned.backbone
    for layer in backbone.layers:
        torch.testing.assert_close(getattr(layer.attn.rel_pos_bias, TABLE), getattr(student.rel_pos_bias, TABLE))
    torch.testing.assert_close(backbone.layers[1].ffn.gamma2.weight, student.layers[1].ffn.gamma2.weight)
    images = torch.randn(2, 3, 24, 24)
    mean = student(images, None, ('block:-1',)).tokens('block:-1')[:, 1:].mean(1)
    torch.testing.assert_close(backbone(images)[0], backbone.ln2(mean))
    tables = [getattr(layer.attn.rel_pos_bias, TABLE) for layer in backbone.layers]
    assert len({table.data_ptr() for table in tables}) == len(tables)  # each block has its own from now on


def test_clip_finetuning__new_relative_biases_change_nothing_at_first(tmp_path):
    """CLIP's file has no relative bias: the recipe allows that, and zero biases do not change the features."""
    clip = dict(position='learned', activation='quick_gelu', norm_eps=1e-5, pre_norm=True)
    tower = scatter_weights(VisionTransformer(**SIZES, **clip, projection=16)).eval()
    torch.save(dict(state_dict=tower.state_dict()), tmp_path / 'clip.pth')
    tables = [f'layers.{i}.attn.rel_pos_bias.{TABLE}' for i in range(3)]
    recipe = 'downstream/mmpretrain/clip-base-p16_ft_8xb128-50e_in1k'
    tuned = classifier(recipe, str(tmp_path / 'clip.pth')).backbone
    assert not any(getattr(layer.attn.rel_pos_bias, TABLE).any() for layer in tuned.layers)
    assert {*tables} < {name for name, _ in tuned.named_parameters()}
    images = torch.randn(2, 3, 24, 24)
    mean = tower(images, None, ('block:-1',)).tokens('block:-1')[:, 1:].mean(1)
    torch.testing.assert_close(tuned(images)[0], tuned.ln2(mean))
