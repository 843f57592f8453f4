"""Small files in the layouts in which foundation models are published, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from helpers.checkpoint_networks import scattered

SMALL: dict[str, Any] = dict(embed_dim=32, depth=2, num_heads=2)
EVA = dict(embed_dim=48, depth=2, num_heads=3)
#: Layouts that timm reads: model, its sizes, and what timm calls each tensor and its authors call it.
BY_TIMM: dict[str, tuple[str, dict[str, Any], str, list[tuple[str, str]]]] = {
    'EVA-02': (
        'eva02_base_patch14_224',
        EVA,
        '',
        [('mlp.norm', 'mlp.ffn_ln'), ('fc1_g', 'w1'), ('fc1_x', 'w2'), ('fc2', 'w3'), ('q_proj.bias', 'q_bias'),
         ('v_proj.bias', 'v_bias'), ('fc_norm.', 'norm.')],
    ),
    'EVA-02 small': (
        'eva02_tiny_patch14_224', EVA, '', [('mlp.fc1', 'mlp.w12'), ('fc2', 'w3'), ('fc_norm.', 'norm.')]
    ),
    'EVA-02 CLIP': (
        'eva02_base_patch16_clip_224',
        EVA,
        'visual.',
        [('mlp.norm', 'mlp.ffn_ln'), ('attn.norm', 'attn.inner_attn_ln'), ('fc1_g', 'w1'), ('fc1_x', 'w2'),
         ('fc2', 'w3'), ('q_proj.bias', 'q_bias'), ('v_proj.bias', 'v_bias')],
    ),
    'PE core': ('vit_pe_core_base_patch16_224', SMALL, 'visual.', []),
    'PE spatial': ('vit_pe_spatial_base_patch16_512', SMALL, '', []),
    'C-RADIO': ('vit_base_patch16_radio_v3', SMALL, '', []),
    'OpenCLIP': ('vit_base_patch16_siglip_224', SMALL, 'visual.trunk.', []),
    'AIMv2': (
        'aimv2_large_patch14_224',
        SMALL,
        '',
        [('mlp.fc1_x', 'mlp.fc3'), ('mlp.fc1_g', 'mlp.fc1'), ('norm1', 'norm_1'), ('norm2', 'norm_2'),
         ('blocks.', 'trunk.blocks.'), ('patch_embed.', 'preprocessor.patchifier.'),
         ('pos_embed', 'preprocessor.pos_embed')],
    ),
    'TIPSv2': ('vit_base_patch14_reg1_tipsv2', SMALL, 'vision_encoder.', []),
}  # fmt: skip
PE = [
    ('patch_embed.proj', 'conv1'), ('blocks.', 'transformer.resblocks.'), ('norm_pre', 'ln_pre'), ('norm1', 'ln_1'),
    ('norm2', 'ln_2'), ('attn.qkv.', 'attn.in_proj_'), ('attn.proj', 'attn.out_proj'), ('mlp.fc1', 'mlp.c_fc'),
    ('mlp.fc2', 'mlp.c_proj'),
]  # fmt: skip


def published(kind: str) -> tuple[str, dict[str, Any], nn.Module, dict[str, Tensor]]:
    """Return a model of timm, its sizes, the network with random weights, and these in the authors' layout."""
    model, sizes, prefix, names = BY_TIMM[kind]
    extra = {'img_size': 2048} if kind == 'C-RADIO' else {}
    network = scattered(timm.create_model(model, num_classes=0, **sizes, **extra))
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if kind.startswith('PE'):
        weights = pe_layout(tensors)
    elif kind == 'C-RADIO':
        weights = radio_layout(tensors)
    elif kind == 'TIPSv2':
        positions = torch.cat([torch.zeros(1, 1, 32), tensors.pop('pos_embed')], dim=1)
        weights = {
            'mask_token': torch.zeros(1, 32),
            'register_tokens': tensors.pop('reg_token'),
            'pos_embed': positions,
        }
        weights |= tensors
    else:
        weights = {}
        for name, tensor in tensors.items():
            for ours, theirs in names:
                name = name.replace(ours, theirs) if not (ours == 'fc_norm.' and not name.startswith(ours)) else name
            weights['trunk.post_trunk_norm.weight' if kind == 'AIMv2' and name == 'norm.weight' else name] = tensor
    if kind in ('EVA-02', 'EVA-02 small'):  # what its masked image modelling adds
        weights |= {'mask_token': torch.zeros(1, 1, 48), 'lm_head.weight': torch.zeros(4, 48)}
        weights['rope.freqs_cos'] = torch.zeros(4, 4)
    weights = {f'{prefix}{name}': tensor for name, tensor in weights.items()}
    if prefix in ('visual.', 'visual.trunk.', 'vision_encoder.'):
        weights |= {'logit_scale': torch.zeros(()), 'text.token_embedding.weight': torch.zeros(8, 4)}
    return model, sizes, network, weights


def pe_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as the Perception Encoder does."""
    weights = {
        'class_embedding': tensors.pop('cls_token')[0, 0],
        'positional_embedding': tensors.pop('pos_embed')[0],
    }
    pool = {name: tensors.pop(name) for name in list(tensors) if name.startswith('attn_pool.')}
    for kind in ('weight', 'bias') if pool else ():
        both = torch.cat([pool[f'attn_pool.q.{kind}'], pool[f'attn_pool.kv.{kind}']])
        weights[f'attn_pool.attn.in_proj_{kind}'] = both
        weights[f'attn_pool.attn.out_proj.{kind}'] = pool[f'attn_pool.proj.{kind}']
        weights[f'attn_pool.layernorm.{kind}'] = pool[f'attn_pool.norm.{kind}']
        weights[f'attn_pool.mlp.c_fc.{kind}'] = pool[f'attn_pool.mlp.fc1.{kind}']
        weights[f'attn_pool.mlp.c_proj.{kind}'] = pool[f'attn_pool.mlp.fc2.{kind}']
        weights['attn_pool.probe'] = pool['attn_pool.latent']
    for name, tensor in tensors.items():
        for ours, theirs in PE:
            name = name.replace(ours, theirs)
        weights[name.replace('norm.', 'ln_post.') if name.startswith('norm.') else name] = tensor
    return weights


def radio_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as C-RADIO does: no bias of patches, one table of tokens, and positions of 128 × 128 patches."""
    start = 'radio_model.model.'
    prefix = torch.cat([tensors['cls_token'], tensors['reg_token']], dim=1)[0]
    weights = {
        f'{start}patch_generator.embedder.weight': tensors['patch_embed.proj.weight'].flatten(1),
        f'{start}patch_generator.pos_embed': tensors['pos_embed'],
        f'{start}patch_generator.cls_token.token': prefix,
        'radio_model.input_conditioner.norm_mean': torch.zeros(3, 1, 1),
    }
    return weights | {start + name: tensor for name, tensor in tensors.items() if name.startswith('blocks.')}


def big_vision_layout(tensors: dict[str, Tensor], heads: int, *, stacked: bool) -> dict[str, np.ndarray]:
    """Name a SigLIP's tensors as big_vision does, with the dimensions of Flax."""

    def parts(start: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
        kind = 'kernel' if tensor.ndim == 2 else 'bias'
        return {f'{start}/{name}/{kind}': tensor.t() if kind == 'kernel' else tensor}

    def attention(start: str, qkv: str, proj: str) -> dict[str, Tensor]:
        found = {}
        for kind in ('weight', 'bias'):
            names = [name for name in qkv.split() if f'{name}.{kind}' in tensors]
            joined = torch.cat([tensors[f'{name}.{kind}'] for name in names])
            for name, tensor in zip(('query', 'key', 'value'), joined.chunk(3), strict=True):
                (path, value), *_ = parts(f'{start}/MultiHeadDotProductAttention_0', name, tensor).items()
                found[path] = value.unflatten(-1, (heads, -1))
        found |= parts(f'{start}/MultiHeadDotProductAttention_0', 'out', tensors[f'{proj}.bias'])
        kernel = tensors[f'{proj}.weight'].t().unflatten(0, (heads, -1))
        return found | {f'{start}/MultiHeadDotProductAttention_0/out/kernel': kernel}

    def rest(start: str, norms: dict[str, str], mlp: str) -> dict[str, Tensor]:
        found = {}
        for theirs, ours in norms.items():
            found |= {
                f'{start}/{theirs}/scale': tensors[f'{ours}.weight'],
                f'{start}/{theirs}/bias': tensors[f'{ours}.bias'],
            }
        for index in (0, 1):
            for kind in ('weight', 'bias'):
                found |= parts(f'{start}/MlpBlock_0', f'Dense_{index}', tensors[f'{mlp}.fc{index + 1}.{kind}'])
        return found

    arrays = {
        'embedding/kernel': tensors['patch_embed.proj.weight'].permute(2, 3, 1, 0),
        'embedding/bias': tensors['patch_embed.proj.bias'],
        'pos_embedding': tensors['pos_embed'],
        'Transformer/encoder_norm/scale': tensors['norm.weight'],
        'Transformer/encoder_norm/bias': tensors['norm.bias'],
        'MAPHead_0/probe': tensors['attn_pool.latent'],
        **attention('MAPHead_0', 'attn_pool.q attn_pool.kv', 'attn_pool.proj'),
        **rest('MAPHead_0', {'LayerNorm_0': 'attn_pool.norm'}, 'attn_pool.mlp'),
    }
    blocks = []
    for index in range(len({name.split('.')[1] for name in tensors if name.startswith('blocks.')})):
        block = f'blocks.{index}'
        norms = {'LayerNorm_0': f'{block}.norm1', 'LayerNorm_1': f'{block}.norm2'}
        blocks.append(attention('', f'{block}.attn.qkv', f'{block}.attn.proj') | rest('', norms, f'{block}.mlp'))
    if stacked:
        arrays |= {
            f'Transformer/encoderblock{name}': torch.stack([block[name] for block in blocks]) for name in blocks[0]
        }
    else:
        arrays |= {
            f'Transformer/encoderblock_{index}{name}': tensor
            for index, block in enumerate(blocks)
            for name, tensor in block.items()
        }
    found = {f'params/img/{name}': np.ascontiguousarray(tensor.numpy()) for name, tensor in arrays.items()}
    return found | {'params/t': np.zeros(1, np.float32), 'params/txt/Embed_0/embedding': np.zeros((8, 4), np.float32)}
