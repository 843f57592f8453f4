"""Losses, L in the unified view. Pointwise ones are torch's own, by their own names.

A loss maps (prediction, target) to an elementwise tensor; the objective owns region and mean.
"""

from torch import nn

from mkd_plugin.models.losses.cosine import CosineLoss, TokenInfoNCE
from mkd_plugin.models.losses.cross_entropy import TokenCrossEntropy
from mkd_plugin.registry import MODELS

__all__ = ['TORCH_LOSSES', 'CosineLoss', 'TokenCrossEntropy', 'TokenInfoNCE']

TORCH_LOSSES = (nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)

for loss in TORCH_LOSSES:
    MODELS.register_module(module=loss)
