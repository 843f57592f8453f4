"""Tiny networks with every optional part, and random weights under which every mistake shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mkd_plugin.interop.export import (
    BOTH_NORMS,
    DINOV3,
    DISTILLED,
    EVA02,
    GATED,
    MLP_NORM,
    NO_CLS,
    NO_NORM,
    NO_TABLE,
    NOT_SQUARE,
    PER_BLOCK,
    PRE_NORM,
    PROJECTION,
    QUICK,
    REGISTERS,
    SCALE,
    SHARED,
    TANH,
    ForeignClass,
)
from mkd_plugin.models.vit import VisionTransformer

TINY: dict[str, Any] = dict(arch=dict(width=48, depth=2, num_heads=4), img_size=32, patch_size=8, position='learned')
OPTIONS: dict[str, dict[str, Any]] = {
    SCALE: dict(layer_scale=0.5),
    PRE_NORM: dict(pre_norm=True, norm_eps=1e-5),
    QUICK: dict(activation='quick_gelu'),
    PROJECTION: dict(projection=24),
    SHARED: dict(relative_position='shared'),
    PER_BLOCK: dict(relative_position='per_block'),
    DISTILLED: dict(distillation_token=True),
    REGISTERS: dict(num_registers=4),
    NO_TABLE: dict(position='none'),
    NOT_SQUARE: dict(img_size=(32, 48)),
    NO_CLS: dict(cls_token=False),
    NO_NORM: dict(final_norm=False),
    DINOV3: dict(rope='dinov3', norm_eps=1e-5),
    EVA02: dict(rope='eva02'),
    GATED: dict(activation='swiglu'),
    TANH: dict(activation='gelu_tanh'),
    MLP_NORM: dict(inner_norm='mlp'),
    BOTH_NORMS: dict(inner_norm='both'),
}


def options_with(features: frozenset[str]) -> dict[str, Any]:
    """Return options of a tiny network with these features."""
    options = dict(TINY)
    for feature in sorted(features):
        options |= OPTIONS[feature]
    return options


def scattered(network: nn.Module, std: float = 0.2) -> nn.Module:
    """Draw all weights from a normal distribution: zero biases and unit norms would hide mistakes."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    network.eval()
    return network


def tiny(features: frozenset[str] = frozenset(), foreign: ForeignClass | None = None) -> VisionTransformer:
    """Build a tiny network with random weights; those that a library's class cannot have are zero."""
    network = scattered(VisionTransformer(**options_with(features)))
    width = network.arch.width
    with torch.no_grad():
        if PRE_NORM in features:
            network.patch_embed.projection.bias.zero_()
        if network.rotary is not None or (foreign is not None and 'beit' in foreign.format.name):
            for block in network.layers:
                block.attn.qkv.bias[width : 2 * width] = 0
        if REGISTERS in features and network.pos_embed is not None:
            network.pos_embed[:, : network.num_placed] = 0
    return network
