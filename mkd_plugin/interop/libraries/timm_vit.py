"""Our networks as timm's classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

Options = Mapping[str, Any]


def sizes(options: Options) -> dict[str, Any]:
    """What timm's classes share."""
    arch = options['arch']
    return dict(
        img_size=options['img_size'],
        patch_size=options['patch_size'],
        in_chans=options['in_channels'],
        embed_dim=arch['width'],
        depth=arch['depth'],
        num_heads=arch['num_heads'],
        mlp_ratio=arch['mlp_ratio'],
        init_values=options['layer_scale'],
        num_classes=options['projection'] or 0,
        global_pool='token',
        norm_layer=partial(nn.LayerNorm, eps=options['norm_eps']),
    )


def shape(options: Options) -> dict[str, Any]:
    """What its two plain classes share."""
    from timm.layers import QuickGELU

    quick = options['activation'] == 'quick_gelu'
    return dict(**sizes(options), pre_norm=options['pre_norm'], act_layer=QuickGELU if quick else nn.GELU)


def build_vit(options: Options) -> nn.Module:
    """VisionTransformer."""
    from timm.models.vision_transformer import VisionTransformer

    registers = options['num_registers']
    return VisionTransformer(**shape(options), reg_tokens=registers, no_embed_class=registers > 0)


def build_distilled(options: Options) -> nn.Module:
    """VisionTransformerDistilled."""
    from timm.models.deit import VisionTransformerDistilled

    network: nn.Module = VisionTransformerDistilled(**shape(options))  # type: ignore[no-untyped-call]
    return network


def build_beit(options: Options) -> nn.Module:
    """Beit."""
    from timm.models.beit import Beit

    return Beit(
        **sizes(options),
        use_abs_pos_emb=options['position'] != 'none',
        use_rel_pos_bias=options['relative_position'] == 'per_block',
        use_shared_rel_pos_bias=options['relative_position'] == 'shared',
    )


def run(network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
    """All tokens after the final norm, and cls after the projection if there is one."""
    found: dict[str, Tensor] = {'output': network.forward_features(images_BCHW)}
    if network.num_classes:
        found['projected'] = network(images_BCHW)[:, None]
    return found
