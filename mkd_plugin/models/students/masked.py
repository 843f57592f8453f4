"""The symmetric student: hidden patches become a learned mask token (MaskDistill, BEiT, SimMIM, dBOT's variant)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask


@MODELS.register_module()
class MaskTokenViT(VisionTransformer):
    """A ViT of full length whose hidden patches are replaced by a mask token before positions are added.

    Takes the options of :class:`VisionTransformer`. The number of hidden patches may differ between images.
    """

    sees_all = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.arch.width))
        nn.init.normal_(self.mask_token, std=0.02)

    def reset_parameters(self) -> None:
        """Draw new weights; the mask token normal(0.02)."""
        super().reset_parameters()
        if hasattr(self, 'mask_token'):  # absent while the parent class is being built
            nn.init.normal_(self.mask_token, std=0.02)

    def _embed_patches(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """All patches, hidden ones replaced, with their positions, (B, L, D)."""
        patches_BLD = self.patch_embed(images_BCHW)
        if mask is not None:
            patches_BLD = torch.where(mask.hidden_BL.unsqueeze(-1), self.mask_token.to(patches_BLD.dtype), patches_BLD)
        return self._with_positions(patches_BLD)
