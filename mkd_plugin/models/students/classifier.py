"""The student as an image classifier's backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.registry import MODELS


@MODELS.register_module()
class ClassifierViT(VisionTransformer):
    """Mean of the last block's patch tokens, then a *new* LayerNorm: what mmpretrain's ``ImageClassifier`` needs.

    dBOT's and MAE's fine-tuning (their ``global_pool``): the encoder's own final norm (``ln1``) is left out, ``ln2`` is
    new. Keys agree with mmpretrain's ``VisionTransformer(out_type='avg_featmap', final_norm=False)``. Takes the options
    of :class:`VisionTransformer`; positions are trained by default, as in the papers.

    Args:
        position: As there.
        frozen_patch_embed: Keep the patch projection as it was loaded (fine-tuning of CLIP itself).
    """

    may_be_new = ('ln2.weight', 'ln2.bias')  # not in a pre-training checkpoint

    def __init__(self, *, position: str = 'learned', frozen_patch_embed: bool = False, **options: Any) -> None:
        super().__init__(position=position, **options)
        self.patch_embed.requires_grad_(not frozen_patch_embed)
        del self.ln1
        self.ln2 = nn.LayerNorm(self.arch.width, eps=1e-6)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """(B, D), in the tuple that mmpretrain's necks and heads expect."""
        tokens = super().forward(images_BCHW, taps=('block:-1',)).tokens('block:-1')
        return (self.ln2(tokens[:, self.num_prefix :].mean(dim=1)),)
