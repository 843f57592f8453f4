"""Our networks as mmpretrain's classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Options = Mapping[str, Any]


def config_of(options: Options) -> dict[str, Any]:
    """The config of a backbone that gives tokens, as one would write it; ``type`` is left out."""
    arch = options['arch']
    size = options['img_size']
    quick = options['activation'] == 'quick_gelu'
    return dict(
        arch=dict(
            embed_dims=arch['width'],
            num_layers=arch['depth'],
            num_heads=arch['num_heads'],
            feedforward_channels=round(arch['width'] * arch['mlp_ratio']),
        ),
        img_size=size if isinstance(size, int) else tuple(size),
        patch_size=options['patch_size'],
        in_channels=options['in_channels'],
        norm_cfg=dict(type='LN', eps=options['norm_eps']),
        layer_scale_init_value=options['layer_scale'] or 0.0,
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')) if quick else {},
        out_type='raw',
        final_norm=True,
    )


def build_vit(options: Options) -> nn.Module:
    """VisionTransformer."""
    from mmpretrain.models import VisionTransformer

    network: nn.Module = VisionTransformer(**config_of(options), pre_norm=options['pre_norm'])
    return network


def build_distilled(options: Options) -> nn.Module:
    """DistilledVisionTransformer. It accepts ``pre_norm``, and leaves it out when it runs."""
    from mmpretrain.models import DistilledVisionTransformer

    network: nn.Module = DistilledVisionTransformer(**config_of(options))
    return network


def build_beit(options: Options) -> nn.Module:
    """BEiTViT."""
    from mmpretrain.models import BEiTViT

    network: nn.Module = BEiTViT(
        **config_of(options),
        use_abs_pos_emb=options['position'] != 'none',
        use_rel_pos_bias=options['relative_position'] == 'per_block',
        use_shared_rel_pos_bias=options['relative_position'] == 'shared',
    )
    return network


def run(network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
    """All tokens after the final norm."""
    return {'output': network(images_BCHW)[-1]}
