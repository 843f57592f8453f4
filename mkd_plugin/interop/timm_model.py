"""A file that timm can read, through timm: its model's name tells what names and shapes do not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.load import load_module
from mkd_plugin.interop.export import LIMIT
from mkd_plugin.models.vit import VisionTransformer

ACTIVATIONS = {'GELU': 'gelu', 'QuickGELU': 'quick_gelu'}


def read_as_timm(model: str, path: str | Path, prefix: str | None = None) -> nn.Module:
    """timm's model with a file's weights, which timm's own filter renames and resizes.

    Args:
        model: Its name, with or without the tag of its weights ('vit_base_patch16_224.dino').
        path: The file; nothing is downloaded.
        prefix: Where the network is in the file.

    Raises:
        ValueError: timm has no such model, it is no plain ViT, or the file does not cover it.
    """
    if not timm.is_model(model):
        near = timm.list_models(f'*{model.split("_")[0]}*')[:5]
        raise ValueError(f"timm {timm.__version__} has no model '{model}'. Did you mean one of {near}?")
    network: nn.Module = timm.create_model(model, num_classes=0)
    if not hasattr(network, 'blocks') or getattr(network, 'cls_token', None) is None:
        raise ValueError(
            f"timm's {model} is a {type(network).__name__} without a cls token or without blocks, so it is no plain ViT: it "
            'cannot be measured here.'
        )
    adapt = getattr(sys.modules[type(network).__module__], 'checkpoint_filter_fn', None)
    load_module(network, str(path), prefix=prefix or '', adapt=adapt)
    return network.eval()


def options_of(network: Any) -> dict[str, Any]:
    """Options of our ViT that its tensors do not tell. Raises ValueError for an activation that ours does not have."""
    block = network.blocks[0]
    activation = type(getattr(block.mlp, 'act', None)).__name__
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"timm's {type(network).__name__} has the activation {activation}; ours has {sorted(ACTIVATIONS)}."
        )
    return {
        'num_heads': block.attn.num_heads,
        'norm_eps': block.norm1.eps,
        'activation': ACTIVATIONS[activation],
        'img_size': network.patch_embed.img_size,
    }


def statistics_of(network: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels, 0 … 255, that timm's own preprocessing takes for these weights."""
    cfg: Mapping[str, Sequence[float]] = network.pretrained_cfg
    mean, std = (tuple(round(255 * value, 4) for value in cfg[name]) for name in ('mean', 'std'))
    return mean, std


@torch.inference_mode()
def check_same_tokens(theirs: Any, ours: VisionTransformer, source: str | Path) -> None:
    """Run both on a random image.

    Raises:
        ValueError: The last block's tokens differ by more than 1e-4 of their largest magnitude: timm's network has parts
            that ours does not have.
    """
    images_BCHW = torch.randn(1, 3, *ours.image_hw, generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    handle = theirs.blocks[-1].register_forward_hook(lambda module, inputs, output: found.append(output))
    theirs.forward_features(images_BCHW)
    handle.remove()
    tokens_BND = ours(images_BCHW, taps=('block:-1',)).tokens('block:-1')
    error = ((found[0] - tokens_BND).abs().max() / found[0].abs().max()).item()
    if not error <= LIMIT:
        raise ValueError(
            f"{source}: timm's {type(theirs).__name__} computes something else than the plain ViT here: tokens differ by "
            f'{error:.1e} of their largest magnitude, {LIMIT:.0e} is allowed. It cannot be measured.'
        )
