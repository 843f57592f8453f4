"""Our tensors in the format of another library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mkd_plugin.checkpoint.formats.timm_like import MAE
from mkd_plugin.checkpoint.libraries import Kind, choose_kind

__all__ = ['export_mae_with_decoder', 'export_weights']

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
