"""The asymmetric student: an encoder that sees visible patches only (MAE, dBOT, DMAE, Hybrid Distill)."""

from __future__ import annotations

from typing import Any

from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS


@MODELS.register_module()
class VisibleViT(VisionTransformer):
    """A ViT that computes the visible patches only; see :class:`VisionTransformer` for its options.

    Raises:
        ValueError: It is given a relative position bias, which needs the full grid.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.relative_position is not None:
            raise ValueError(
                f'VisibleViT(relative_position={self.relative_position!r}): a relative position bias needs the full grid. Use '
                "a MaskTokenViT, or position='sincos'."
            )
