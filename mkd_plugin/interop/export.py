"""Our tensors in the format of another library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mkd_plugin.checkpoint.formats.timm_like import MAE
from mkd_plugin.interop.libraries import Kind, choose_kind

if TYPE_CHECKING:
    from mkd_plugin.models.vit import VisionTransformer

PRETRAINING = ('mask_token',)  # serves what other libraries' backbones do not do


def export_weights(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], target: str
) -> tuple[Kind, dict[str, Tensor], list[str]]:
    """A network for another library.

    Args:
        tensors: Ours, by our names.
        options: The network's.
        target: 'mmpretrain', 'timm', 'hf', 'mae' or 'openclip'.

    Returns:
        The library's class, its tensors by its names, and those of ours that were left out.

    Raises:
        ValueError: The library has no class with all that this network has; the message names what is missing.
    """
    kind = choose_kind(target, options)
    kept = {name: tensor for name, tensor in tensors.items() if name not in PRETRAINING}
    exported, left = kind.format.to_theirs(kept)
    if left:
        raise ValueError(f"'{target}' has no place for {left[:6]} in its {kind.title}.")
    return kind, exported, [name for name in tensors if name in PRETRAINING]


def export_mae_with_decoder(
    tensors: Mapping[str, Tensor], decoder: Mapping[str, Tensor], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Encoder and decoder as MAE's reference code names them.

    Raises:
        ValueError: The encoder is not MAE's, or the decoder is none.
    """
    choose_kind('mae', options)
    parts = {**tensors, **{f'decoder.{name}': tensor for name, tensor in decoder.items()}}
    parts = {name: tensor for name, tensor in parts.items() if name not in PRETRAINING}
    exported, left = MAE.to_theirs(parts)
    if left:
        raise ValueError(f"MAE's format has no place for {left[:6]}.")
    return exported


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
