"""Teachers of the tiny student, one config of every kind, and an independent normalisation of pixels."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import nn

from helpers.networks import ARCH
from mkd_plugin.models.protocols import StudentContext
from mkd_plugin.models.teachers.vit import IMAGENET_MEAN, IMAGENET_STD
from mkd_plugin.registry import build

CLIP_MEAN, CLIP_STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
SEEDED = dict(type='ViTTeacher', arch=ARCH, patch_size=4, seed=3)


class TinyGenerator(BaseModule):
    """Target generator with weights and a buffer: one vector per patch."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images):
        return self.norm(self.patches(images)).flatten(2).transpose(1, 2)


EVERY = {
    'vit': SEEDED,
    'visible vit': dict(SEEDED, sees='visible'),
    'bootstrapped': dict(type='BootstrappedTeacher'),
    'bootstrapped from a vit': dict(type='BootstrappedTeacher', start=SEEDED),
    'momentum': dict(type='MomentumTeacher', momentum=0.9),
    'pixel': dict(type='PixelTeacher'),
    'generator': dict(type='GeneratorTeacher', generator=dict(type=TinyGenerator)),
}


def context_of(network, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    return StudentContext(network, tuple(mean), tuple(std))


def teacher_of(cfg, network):
    return build(cfg, student=context_of(network)).double()


# --- ViTTeacher
def normalised(raw_BCHW, mean, std):
    """Channel by channel, like a data preprocessor."""
    return torch.stack([(raw_BCHW[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
