"""Target normalizations, N in the equation: (…, R, D) → (…, R, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens


@MODELS.register_module()
class TokenStandardize(nn.Module):
    """(x − mean) / √(variance + eps) over the channels of each token.

    Args:
        unbiased: Divide the variance by D − 1, as dBOT and MAE do (True), or by D, as LayerNorm does (False).
        eps: Added to the variance.
    """

    def __init__(self, *, unbiased: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.unbiased, self.eps = unbiased, eps

    def forward(self, target: Tensor) -> Tensor:
        """Standardise every token."""
        mean = target.mean(dim=-1, keepdim=True)
        variance = target.var(dim=-1, unbiased=self.unbiased, keepdim=True)
        return (target - mean) * (variance + self.eps).rsqrt()


@MODELS.register_module()
class L2Normalize(nn.Module):
    """Scale every token to unit L2 norm over its channels (DMAE's reference code, MVP, MaskFeat)."""

    def forward(self, target: Tensor) -> Tensor:
        """Normalise every token."""
        return F.normalize(target, dim=-1)


@MODELS.register_module()
class BatchStandardize(nn.Module):
    """(x − mean) / √(variance + eps) per channel over all tokens of the batch: BatchNorm without affine parameters.

    Each rank uses its own tokens. If the number of hidden patches differs between images, padding tokens do not count.

    Args:
        eps: Added to the variance.
    """

    wants_region = True

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, target: Tensor, region: RegionTokens | None = None) -> Tensor:
        """Standardise every channel.

        Args:
            target: Targets (B, …, R, D).
            region: Marks padding tokens; None for no padding.
        """
        over = tuple(range(target.dim() - 1))
        if region is None or region.weight_BR is None:
            variance_D, mean_D = torch.var_mean(target, dim=over, correction=0)
            return (target - mean_D) * (variance_D + self.eps).rsqrt()
        images, tokens = region.weight_BR.shape
        weight = region.weight_BR.view(images, *[1] * (target.dim() - 3), tokens, 1).expand_as(target)
        count_D = weight.sum(over).clamp(min=1)  # nothing may be hidden at all
        centred = target - (target * weight).sum(over) / count_D
        return centred * ((centred.square() * weight).sum(over) / count_D + self.eps).rsqrt()
