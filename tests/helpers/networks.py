"""A network of 32 × 3, images of 16 px in patches of 4 (a grid of 4 × 4, so L = 16), masks, and poisoned images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ARCH = dict(width=32, depth=3, num_heads=4)
VIT = dict(arch=ARCH, img_size=16, patch_size=4)

DBOT = dict(
    backbone=dict(type='VisibleViT', **VIT),
    masking=dict(type='RandomMasking', ratio=0.75),
    teachers=dict(boot=dict(type='BootstrappedTeacher', start='student')),
    objectives=dict(
        feature=dict(
            teacher='boot',
            tap='block:-1',
            student='output',
            normalize=dict(type='TokenStandardize', unbiased=True),
            head=dict(type='TransformerDecoder', depth=2, width=16, num_heads=2),
            loss=dict(type='SmoothL1Loss', beta=2.0),
            region='hidden+cls',
        )
    ),
)
MAE = dict(
    teachers=dict(pixel=dict(type='PixelTeacher')),
    objectives=dict(
        pixel=dict(
            teacher='pixel',
            tap='output',
            student='output',
            normalize=dict(type='TokenStandardize', unbiased=True),
            head=dict(type='TransformerDecoder', depth=2, width=16, num_heads=2),
            loss=dict(type='MSELoss'),
            region='hidden',
        )
    ),
)


def scatter_weights(module: nn.Module, std: float = 0.05) -> nn.Module:
    """Move every parameter off its initial value: zero biases and unit norms would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return module


def hidden_masks(batch: int = 3, patches: int = 16, visible: int = 4) -> Tensor:
    """Random masks (True = hidden) with the same number of visible patches, written without the package."""
    hidden_BL = torch.ones(batch, patches, dtype=torch.bool)
    for row in hidden_BL:
        row[torch.randperm(patches)[:visible]] = False
    return hidden_BL


def poison(images_BCHW: Tensor, hidden_BL: Tensor, patch: int = 4) -> Tensor:
    """The images with NaN in every hidden patch: whoever reads one gives NaN."""
    images_BCHW = images_BCHW.clone()
    columns = images_BCHW.shape[-1] // patch
    for image, hidden_L in zip(images_BCHW, hidden_BL.tolist(), strict=True):
        for index, hidden in enumerate(hidden_L):
            if hidden:
                row, column = divmod(index, columns)
                image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = torch.nan
    return images_BCHW
