"""Cross entropy between predicted scores and class numbers of tokens (BEiT, BEiT v2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.registry import MODELS


@MODELS.register_module()
class TokenCrossEntropy(nn.Module):
    """Cross entropy of every token; for targets that are class numbers."""

    wants_classes = True

    def forward(self, scores_BRC: Tensor, classes_BR1: Tensor) -> Tensor:
        """(B, R)."""
        return F.cross_entropy(scores_BRC.transpose(1, 2), classes_BR1.squeeze(-1), reduction='none')
