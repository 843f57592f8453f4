"""The student that sees every patch: plain distillation (FD, and MaskDistill's comparison with ratio 0)."""

from __future__ import annotations

from torch import Tensor

from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask


@MODELS.register_module()
class PlainViT(VisionTransformer):
    """A ViT for ``NoMasking``; takes the options of :class:`VisionTransformer`.

    Unlike :class:`VisibleViT` it may have a relative position bias, unlike :class:`MaskTokenViT` it has no mask token that
    would never be learned. Its checkpoints load into either's classifier.
    """

    def _embed_patches(self, images_BCHW: Tensor, mask: TokenMask | None) -> Tensor:
        """All patches with their positions, (B, L, D).

        Raises:
            ValueError: The mask hides something.
        """
        shown = self.grid[0] * self.grid[1]
        if mask is not None and (mask.ids_keep_BV is None or mask.ids_keep_BV.shape[1] != shown):
            raise ValueError(
                'PlainViT sees every patch, but the masking hides some. Use NoMasking, or a MaskTokenViT or VisibleViT.'
            )
        return super()._embed_patches(images_BCHW, None)
