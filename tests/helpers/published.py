"""The tensors of ../shared/analysis_definitions.md whose measurements are published there."""

from __future__ import annotations

import torch
from torch import Tensor

from mkd_plugin.analysis import patch_distances


def published_attention() -> dict[str, Tensor]:
    """Three attention maps on a grid of 14 × 14 patches of 16 pixels, (196, 196) float64."""
    distances_LL = patch_distances((14, 14), 16)
    return {
        'uniform': torch.full((196, 196), 1 / 196, dtype=torch.float64),
        'identity': torch.eye(196, dtype=torch.float64),
        'near': (-distances_LL / 16).softmax(dim=1),
    }


def published_tokens() -> Tensor:
    """z[n, c] = sin(0.1 (n + 1)(c + 1)) of one image, (1, 196, 8) float64."""
    n, c = torch.arange(1, 197, dtype=torch.float64), torch.arange(1, 9, dtype=torch.float64)
    return torch.sin(0.1 * n[:, None] * c)[None]
