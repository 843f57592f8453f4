"""Components of objectives on the tiny student, given masks, and losses written out."""

from __future__ import annotations

import torch
from mmpretrain.structures import DataSample
from torch import nn

from helpers.networks import ARCH
from mkd_plugin.structures import TokenMask

VIT_TEACHER = dict(type='ViTTeacher', arch=dict(width=24, depth=2, num_heads=2), patch_size=4, seed=5)
SYMMETRIC = dict(type='MaskTokenViT', arch=ARCH, img_size=16, patch_size=4)


def given(hidden_BL):
    return [DataSample().set_mask(row) for row in hidden_BL]


def student_tokens(model, images, hidden_BL, tap='output'):
    """Compute the student's tokens under a mask, (B, 1 + V, D)."""
    return model.backbone(images, TokenMask.from_hidden(hidden_BL, int((~hidden_BL[0]).sum())), taps=(tap,)).tokens(tap)


def smooth_l1(difference, beta):
    size = difference.abs()
    return torch.where(size < beta, size**2 / (2 * beta), size - beta / 2)


class PatchSigns(nn.Module):
    """Tokenizer with two classes: whether the mean of a patch is positive."""

    def forward(self, images):
        return (nn.functional.avg_pool2d(images, 4).mean(1).flatten(1) > 0).long()


TOKENIZER = dict(
    teachers=dict(boot=dict(type='GeneratorTeacher', generator=dict(type=PatchSigns), num_classes=2)),
    objective=dict(tap='output', normalize=None, loss=dict(type='TokenCrossEntropy')),
)
