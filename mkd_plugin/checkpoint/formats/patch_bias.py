"""Networks with a norm before the first block (CLIP) embed patches without a bias; ours has one, of zeros."""

from __future__ import annotations

from mkd_plugin.checkpoint.formats.rules import Converted, Tensors

__all__ = ['fill_patch_bias', 'remove_patch_bias']

WEIGHT, BIAS = 'patch_embed.projection.weight', 'patch_embed.projection.bias'


def fill_patch_bias(done: Converted) -> None:
    """Add the zeros."""
    if 'pre_norm.weight' in done.tensors and WEIGHT in done.tensors and BIAS not in done.tensors:
        weight = done.tensors[WEIGHT]
        done.tensors[BIAS] = weight.new_zeros(weight.shape[0])


def remove_patch_bias(tensors: Tensors) -> None:
    """Take them away again.

    Raises:
        ValueError: They are not zero any more, because the network was trained here.
    """
    if 'pre_norm.weight' not in tensors:
        return
    bias = tensors.pop(BIAS, None)
    if bias is not None and bool(bias.any()):
        raise ValueError(
            'The format has no bias of the patch embedding beside a norm before the first block, and this network has one '
            'that is not zero (patch_embed.projection.bias).'
        )
