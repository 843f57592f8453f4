"""Tiny networks of timm's models of DINOv3, SigLIP and EVA-02, and the options of ours that compute the same."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from helpers.networks import scatter_weights

SIZES = dict(patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=0, img_size=32)
DINOV3 = dict(position='none', rope='dinov3', layer_scale=1e-5, num_registers=4, norm_eps=1e-5)
EVA02 = dict(position='learned', rope='eva02', activation='swiglu')
SIGLIP = dict(position='learned', cls_token=False)
# Name: timm's model, its arguments besides the sizes, our hidden width, and our options besides the sizes.
NETWORKS: dict[str, tuple[str, dict[str, Any], int, dict[str, Any]]] = {
    'dinov3': ('vit_base_patch16_dinov3', {}, 192, DINOV3),
    'dinov3_qkvb': ('vit_base_patch16_dinov3_qkvb', {}, 192, DINOV3),
    'dinov3_plus': ('vit_huge_plus_patch16_dinov3_qkvb', {}, 192, dict(DINOV3, activation='swiglu')),
    'eva02_small': ('eva02_small_patch14_224', dict(global_pool='token'), 128, EVA02),
    'eva02_base': ('eva02_base_patch14_224', {}, 128, dict(EVA02, inner_norm='mlp', final_norm=False)),
    'eva02_clip': ('eva02_base_patch16_clip_224', {}, 128, dict(EVA02, inner_norm='both')),
    'siglip': ('vit_base_patch16_siglip_224', {}, 192, SIGLIP),
    'siglip2': ('vit_so400m_patch16_siglip_256', {}, 179, dict(SIGLIP, activation='gelu_tanh')),
}


def ours_of(name: str, **changes: Any) -> dict[str, Any]:
    """Options of our network, sizes included."""
    _, _, hidden, options = NETWORKS[name]
    arch = dict(width=48, depth=3, num_heads=4, mlp_ratio=hidden / 48)
    return {**dict(arch=arch, img_size=32, patch_size=8), **options, **changes}


def timm_network(name: str, **changes: Any) -> nn.Module:
    """timm's network in evaluation, with weights off their initial values."""
    torch.manual_seed(0)
    model, options, *_ = NETWORKS[name]
    return scatter_weights(timm.create_model(model, **{**SIZES, **options, **changes}), 0.2).eval()


def authors_dinov3(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's DINOv3 as its authors do, with their masked bias, mask token and periods."""
    names = dict(reg_token='storage_tokens', gamma_1='ls1.gamma', gamma_2='ls2.gamma', fc1_g='w1', fc1_x='w2')
    gated = any('fc1_g' in name for name in weights)
    found = {'mask_token': torch.randn(1, 48), 'rope_embed.periods': torch.ones(3)}
    for name, value in weights.items():
        for theirs, authors in (names | ({'fc2': 'w3'} if gated else {})).items():
            name = name.replace(theirs, authors)
        if name.endswith('q_bias'):
            keys, mask = torch.full_like(value, float('nan')), torch.ones(3, len(value))
            mask[1] = 0
            found[name.replace('q_bias', 'qkv.bias_mask')] = mask.flatten()
            biases = [value, keys, weights[name.replace('q_bias', 'v_bias')]]
            found[name.replace('q_bias', 'qkv.bias')] = torch.cat(biases)
        elif not name.endswith('v_bias'):
            found[name] = value
    return found
