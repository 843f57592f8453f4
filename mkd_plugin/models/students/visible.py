"""The asymmetric student: an encoder that sees visible patches only (MAE, dBOT, DMAE, Hybrid Distill)."""

from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS

__all__ = ['VisibleViT']


@MODELS.register_module()
class VisibleViT(VisionTransformer):
    """A ViT that computes the visible patches only; see :class:`VisionTransformer` for its options."""
