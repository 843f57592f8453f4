"""MaskDistill, dBOT's symmetric variant and FD against a few lines of plain float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import poison, scatter_weights
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from PIL import Image
from test_configs import TINY, build, shrink, train_two_steps
from torch.nn import functional as F

import mkd_plugin
from mkd_plugin.datasets.crops import collate_crops
from mkd_plugin.registry import MODELS

B300 = 'maskdistill/maskdistill_vit-base-p16_8xb256-300e_in1k'
CLIP_MEAN = torch.tensor([122.7709383, 116.7460125, 104.09373615]).view(3, 1, 1)
CLIP_STD = torch.tensor([68.5005327, 66.6321579, 70.32316305]).view(3, 1, 1)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
EXPLICIT = {
    'MSELoss': lambda p, t: ((p - t) ** 2).mean(-1),
    'L1Loss': lambda p, t: (p - t).abs().mean(-1),
    'SmoothL1Loss': lambda p, t: torch.where((p - t).abs() < 1, (p - t) ** 2 / 2, (p - t).abs() - 0.5).mean(-1),
    'CosineLoss': lambda p, t: 1 - (p * t).sum(-1) / ((p**2).sum(-1) * (t**2).sum(-1)).sqrt(),
}
NORMS = {
    None: lambda t: t,
    'L2Normalize': lambda t: t / (t**2).sum(-1, keepdim=True).sqrt(),
    'TokenStandardize': lambda t: F.layer_norm(t, t.shape[-1:], eps=1e-5),
    'BatchStandardize': lambda t: (t - t.mean((0, 1))) / (t.var((0, 1), correction=0) + 1e-5).sqrt(),
}


def tiny(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A recipe's model in float64, small, its weights moved away from the teacher's and the initial ones; images."""
    cfg = shrink(mkd_plugin.get_config(name))
    cfg.model.backbone.drop_path_rate = 0.0
    model = scatter_weights(build(cfg).double())
    return model, torch.randn(3, 3, 64, 64, dtype=torch.float64)


def fix_mask(model: torch.nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Let the masking draw once and for all; which patches are hidden."""
    mask = model.masking(images, None)
    monkeypatch.setattr(model.masking, 'forward', lambda *_: mask)
    return mask.hidden_BL


def clip_features(model: torch.nn.Module, images: torch.Tensor, tap: str) -> torch.Tensor:
    """Every token that CLIP gives of the intact images, with CLIP's own pixel statistics."""
    pixels = images * STD + MEAN
    return model.teachers['teacher'].network((pixels - CLIP_MEAN) / CLIP_STD, None, (tap,)).tokens(tap)


def predictions(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the linear head makes of every patch of the masked images."""
    student = model.backbone(images, model.masking(images, None)).tokens('output')
    return model.objectives['feature'].heads[0].linear(student)


def test_maskdistill__loss_is_smooth_l1_of_layer_normed_projected_tokens(monkeypatch):
    model, images = tiny(B300)
    hidden_BL = fix_mask(model, images, monkeypatch)
    targets = F.layer_norm(clip_features(model, images, 'projected'), (16,), eps=1e-5)[:, 1:][hidden_BL]
    wanted = EXPLICIT['SmoothL1Loss'](predictions(model, images)[:, 1:][hidden_BL], targets).mean()
    torch.testing.assert_close(model.loss(images)['loss_feature'], wanted, rtol=1e-6, atol=0)


def test_dbot_symmetric__loss_is_one_minus_the_mean_cosine_of_hidden_patches(monkeypatch):
    model, images = tiny('dbot/dbot-sym_vit-base-p16_teacher-clip-base_8xb512-1x1600e_in1k')
    hidden_BL = fix_mask(model, images, monkeypatch)
    targets = clip_features(model, images, 'projected')[:, 1:][hidden_BL]
    wanted = 1 - F.cosine_similarity(predictions(model, images)[:, 1:][hidden_BL], targets).mean()
    torch.testing.assert_close(model.loss(images)['loss_feature'], wanted, rtol=1e-6, atol=0)


def test_fd__loss_is_over_every_token_and_cls(monkeypatch):
    model, images = tiny('fd/fd_vit-base-p16_teacher-clip-base_8xb256-300e_in1k')
    targets = F.layer_norm(clip_features(model, images, 'output'), (32,), eps=1e-5)
    error = (predictions(model, images) - targets).abs()
    wanted = torch.where(error < 2, error**2 / 4, error - 1).mean()  # beta 2.0
    torch.testing.assert_close(model.loss(images)['loss_feature'], wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('loss', EXPLICIT)
def test_maskdistill__every_loss_goes_with_every_normalisation(loss, norm, monkeypatch):
    normalize = norm and dict(type=norm, **({'unbiased': False, 'eps': 1e-5} if norm == 'TokenStandardize' else {}))
    cfg = mkd_plugin.get_config('maskdistill/maskdistill_digits').model
    cfg.backbone.update(arch=TINY)
    cfg.teachers.teacher.update(arch=TINY)
    cfg.masking = dict(type='RandomMasking', ratio=0.4)  # a fixed number: batch norm over the hidden patches alone
    cfg.objectives.feature.normalize, cfg.objectives.feature.loss = normalize, dict(type=loss)
    model = scatter_weights(MODELS.build(cfg).double())
    images = torch.randn(3, 3, 24, 24, dtype=torch.float64)
    mask = model.masking(images, None)
    monkeypatch.setattr(model.masking, 'forward', lambda *_: mask)
    teacher = model.teachers['teacher']
    pixels = teacher.view(images)
    targets = teacher.network(pixels, None).tokens('output')[:, 1:][mask.hidden_BL].view(3, -1, 32)
    found = model.loss(images)['loss_feature']
    prediction = predictions(model, images)[:, 1:][mask.hidden_BL].view(3, -1, 32)
    torch.testing.assert_close(found, EXPLICIT[loss](prediction, NORMS[norm](targets)).mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    'name', [B300, 'dbot/dbot-sym_vit-base-p16_teacher-dino-base_8xb512-1x1600e_in1k', 'maskdistill/maskdistill_digits']
)
def test_hidden_pixels__reach_the_teacher_and_not_the_student(name, monkeypatch):
    model, images = tiny(name)
    images = images[..., : model.backbone.img_size, : model.backbone.img_size]
    hidden_BL = fix_mask(model, images, monkeypatch)
    assert hidden_BL.any(1).all()
    poisoned = poison(images, hidden_BL, patch=model.backbone.patch_size)
    mask = model.masking(images, None)
    clean = model.backbone(images, mask).tokens('output')
    torch.testing.assert_close(model.backbone(poisoned, mask).tokens('output'), clean, rtol=0, atol=0)
    teacher, tap = model.teachers['teacher'], model.requests['teacher'].taps
    assert teacher(poisoned, mask, tap).tokens(tap[0]).isnan().all()


def test_relative_positions__are_shared_by_all_blocks():
    model, _ = tiny(B300)
    tables = [name for name, _ in model.backbone.named_parameters() if name.endswith('relative_position_bias_table')]
    assert tables == ['rel_pos_bias.relative_position_bias_table']
    assert model.backbone.pos_embed is None


def test_mask_of_the_data_pipeline__is_the_one_that_is_used(tmp_path):
    """One picture through the shipped pipeline, collated as the loader does, into the model."""
    cfg = mkd_plugin.get_config('maskdistill/maskdistill_vit-base-p16_data-masks_8xb256-300e_in1k')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (250, 300, 3), dtype=np.uint8)).save(tmp_path / 'a.png')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
        items = [pipeline({'img_path': str(tmp_path / 'a.png')}) for _ in range(4)]
    hidden = torch.stack([item['data_samples'].mask for item in items])
    counts = hidden.sum((1, 2))
    assert hidden.shape == (4, 14, 14) and (counts <= 78).all() and (counts > 39).all()

    cfg.model.backbone.update(arch=TINY)
    cfg.model.teachers.teacher.update(arch=TINY, network=dict(projection=16), checkpoint=None, seed=0)
    model = build(cfg)
    data = model.data_preprocessor(collate_crops(items), training=True)
    results = model.loss(data['inputs'], data['data_samples'])
    assert results['hidden_share'].item() == pytest.approx(counts.sum().item() / (4 * 196))
    assert results['loss_feature'].isfinite()


def test_clip_finetuning__trains_all_but_the_patch_projection():
    cfg = shrink(mkd_plugin.get_config('downstream/mmpretrain/clip-base-p16_ft_8xb128-50e_in1k'))
    model = build(cfg)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ['backbone.patch_embed.projection.weight', 'backbone.patch_embed.projection.bias']
    samples = [DataSample().set_gt_label(i) for i in range(8)]
    train_two_steps(model, torch.randn(8, 3, 64, 64), samples)
