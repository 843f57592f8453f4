"""Target normalizations, N in the equation: (…, R, D) → (…, R, D)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.registry import MODELS


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

    Each rank uses its own tokens. If the number of hidden patches differs between images, padding tokens count as well.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, target: Tensor) -> Tensor:
        """Standardise every channel."""
        rows = target.flatten(0, -2)
        return (target - rows.mean(0)) * (rows.var(0, correction=0) + self.eps).rsqrt()
