"""Students: ViTs that compute visible patches only, all patches with mask tokens, or intact images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.models.vit.block import BEIT_INIT
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask


@MODELS.register_module()
class VisibleViT(VisionTransformer):
    """ViT that computes visible patches only; takes the options of :class:`VisionTransformer`.

    Raises:
        ValueError: ``relative_position`` is set, which needs the full grid.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.relative_position is not None:
            raise ValueError(
                f'VisibleViT(relative_position={self.relative_position!r}): a relative position bias needs the full grid. Use '
                "a MaskTokenViT, or position='sincos'."
            )


@MODELS.register_module()
class MaskTokenViT(VisionTransformer):
    """ViT that replaces hidden patches by a mask token before positions are added.

    Takes the options of :class:`VisionTransformer`. The number of hidden patches may differ between images. Weights start
    as in BEiT, which MaskDistill and dBOT's symmetric variant follow.
    """

    sees_all = True
    initialization = BEIT_INIT

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.arch.width))
        self.initialization.token_(self.mask_token)

    def reset_parameters(self) -> None:
        """Draw new weights by the class's ``initialization``."""
        super().reset_parameters()
        if hasattr(self, 'mask_token'):  # not yet set when the parent's constructor calls this
            self.initialization.token_(self.mask_token)

    def _embed_patches(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Embed all patches, replace hidden ones, and add positions, (B, L, D)."""
        patches_BLD = self.patch_embed(images_BCHW)
        if mask is not None:
            patches_BLD = torch.where(mask.hidden_BL.unsqueeze(-1), self.mask_token.to(patches_BLD.dtype), patches_BLD)
        return self._with_positions(patches_BLD)


@MODELS.register_module()
class PlainViT(VisionTransformer):
    """ViT for ``NoMasking``; takes the options of :class:`VisionTransformer`.

    Unlike :class:`VisibleViT` it supports a relative position bias; unlike :class:`MaskTokenViT` it has no mask token,
    which would receive no gradient. Weights start as in BEiT.
    """

    initialization = BEIT_INIT
    can_hide = False

    def _embed_patches(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """Embed all patches and add positions, (B, L, D). Raises ValueError if the mask hides a patch."""
        shown = self.grid[0] * self.grid[1]
        if mask is not None and (mask.ids_keep_BV is None or mask.ids_keep_BV.shape[1] != shown):
            raise ValueError(
                'PlainViT sees every patch, but the masking hides some. Use NoMasking, or a MaskTokenViT or VisibleViT.'
            )
        return super()._embed_patches(images_BCHW, None)


@MODELS.register_module()
class ClassifierViT(VisionTransformer):
    """Backbone for mmpretrain's ``ImageClassifier``: mean of the last block's patch tokens, then a *new* LayerNorm.

    Used by dBOT and MAE for fine-tuning (``global_pool``): ``ln2`` replaces the encoder's final norm ``ln1``. Keys match
    mmpretrain's ``VisionTransformer(out_type='avg_featmap', final_norm=False)``. Takes the options of
    :class:`VisionTransformer`; positions are learned by default, as in the papers.

    Args:
        position: Absolute positions, as in :class:`VisionTransformer`.
        frozen_patch_embed: Freeze the patch embedding (fine-tuning of CLIP itself).
    """

    may_be_new = ('ln2.weight', 'ln2.bias')  # not in a pre-training checkpoint

    def __init__(self, *, position: str = 'learned', frozen_patch_embed: bool = False, **options: Any) -> None:
        super().__init__(position=position, **options)
        self.patch_embed.requires_grad_(not frozen_patch_embed)
        del self.ln1
        self.ln2 = nn.LayerNorm(self.arch.width, eps=1e-6)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """Compute image features (B, D), in the tuple that mmpretrain's necks and heads expect."""
        tokens = super().forward(images_BCHW, taps=('block:-1',)).tokens('block:-1')
        return (self.ln2(tokens[:, self.num_prefix :].mean(dim=1)),)
