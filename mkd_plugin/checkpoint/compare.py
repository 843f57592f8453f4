"""Whether a network of another library computes what ours does: both see the same image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.libraries import Kind

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer

__all__ = ['LIMIT', 'build_filled', 'largest_error']

LIMIT = 1e-4  # of the largest magnitude


def build_filled(kind: Kind, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The other library's network with these weights, in eval mode.

    Raises:
        ValueError: They do not cover it, or leave a tensor over that is no head's.
    """
    network = kind.build(options)
    missing, unexpected = network.load_state_dict(dict(weights), strict=False)
    buffers = {name for name, _ in network.named_buffers()}
    missing = [name for name in missing if name not in buffers]
    if missing:
        raise ValueError(f'{kind.title} of {kind.package} misses {missing[:6]}; it does not know {unexpected[:6]}.')
    network.eval()  # mmpretrain's gives None
    return network


def largest_error(kind: Kind, theirs: nn.Module, ours: VisionTransformer, *, seed: int = 0) -> float:
    """Largest difference over largest magnitude of the tokens of one random image, at worst among what both give.

    Args:
        kind: Of which kind the other network is.
        theirs: The other network.
        ours: Ours.
        seed: Of the image.
    """
    generator = torch.Generator().manual_seed(seed)
    images_BCHW = torch.randn(1, ours.in_channels, *ours.image_hw, generator=generator)
    worst = 0.0
    with torch.inference_mode():
        wanted = kind.run(theirs, images_BCHW)
        features = ours.eval()(images_BCHW, taps=tuple(wanted))
        for tap, tokens_BND in wanted.items():
            found_BND = features.tokens(tap)[:, : tokens_BND.shape[1]]
            worst = max(worst, ((found_BND - tokens_BND).abs().max() / tokens_BND.abs().max()).item())
    return worst
