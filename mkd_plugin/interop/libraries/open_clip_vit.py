"""Our networks as OpenCLIP's visual tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Options = Mapping[str, Any]


def build(options: Options) -> nn.Module:
    """The tower."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    arch = options['arch']
    network: nn.Module = VisionTransformer(
        image_size=options['img_size'],
        patch_size=options['patch_size'],
        width=arch['width'],
        layers=arch['depth'],
        heads=arch['num_heads'],
        mlp_ratio=arch['mlp_ratio'],
        ls_init_value=options['layer_scale'],
        output_dim=options['projection'],
        act_layer=QuickGELU if options['activation'] == 'quick_gelu' else nn.GELU,
    )
    return network


def run(network: Any, images_BCHW: Tensor) -> dict[str, Tensor]:
    """cls after the projection."""
    return {'projected': network(images_BCHW)[:, None]}
