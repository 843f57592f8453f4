"""timm's networks with weights that hide nothing."""

from __future__ import annotations

from torch import nn

from helpers.networks import scatter_weights

TINY = dict(patch_size=8, embed_dim=48, depth=4, num_heads=4)


def timm_vit(*, sizes: dict[str, int] = TINY, img_size: int = 32, std: float = 0.2) -> nn.Module:
    """timm's ViT, which takes any image size."""
    from timm.models import VisionTransformer

    network = VisionTransformer(img_size=img_size, num_classes=0, dynamic_img_size=True, **sizes)
    return scatter_weights(network, std).eval()


def timm_beit(shared: bool = False, *, sizes: dict[str, int] = TINY, img_size: int = 32, std: float = 0.2) -> nn.Module:
    """timm's BEiT with relative positions only, of all blocks or of each."""
    from timm.models.beit import Beit

    kind = 'use_shared_rel_pos_bias' if shared else 'use_rel_pos_bias'
    options = dict(init_values=0.1, use_abs_pos_emb=False, num_classes=0, **{kind: True})
    return scatter_weights(Beit(img_size=img_size, **options, **sizes), std).eval()
