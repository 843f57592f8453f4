"""Hugging Face's names: those that files have had since transformers 4, and those of the classes of transformers 5.

transformers 5 still writes the old names (its ViTMAE with ``decoder_encoder.layer`` for ``decoder_layers``), so the old
ones are what an export has.
"""

from __future__ import annotations

import torch

from mkd_plugin.checkpoint.formats.own import TABLE, fill_patch_bias, remove_patch_bias
from mkd_plugin.checkpoint.formats.rules import FLAT, Converted, Format, Rule, Tensors, under

OLD = 'encoder.layer.{i}'
NEW = 'layers.{i}'
OURS = 'layers.{i}'


def joined(module: str, names: tuple[str, str, str], ours: str, *, key_bias: bool = True) -> tuple[Rule, ...]:
    """Weights and biases of queries, keys and values."""
    query, key, value = (f'{module}.{name}' for name in names)
    return (
        Rule((f'{query}.weight', f'{key}.weight', f'{value}.weight'), f'{ours}.weight'),
        Rule((f'{query}.bias', f'{key}.bias' if key_bias else None, f'{value}.bias'), f'{ours}.bias'),
    )


def attention(old: str, new: str, ours: str, *, key_bias: bool = True) -> tuple[Rule, ...]:
    """A block's attention in either naming."""
    words, letters = ('query', 'key', 'value'), ('q_proj', 'k_proj', 'v_proj')
    return (
        *joined(f'{old}.attention.attention', words, f'{ours}.attn.qkv', key_bias=key_bias),
        *joined(f'{new}.attention', letters, f'{ours}.attn.qkv', key_bias=key_bias),
        Rule(f'{old}.attention.output.dense.{{p}}', f'{ours}.attn.proj.{{p}}'),
        Rule(f'{new}.attention.o_proj.{{p}}', f'{ours}.attn.proj.{{p}}'),
    )


def norms_and_mlp(old: str, new: str, ours: str) -> tuple[Rule, ...]:
    """The rest of ViT's block."""
    return (
        Rule(f'{old}.layernorm_before.{{p}}', f'{ours}.ln1.{{p}}'),
        Rule(f'{old}.layernorm_after.{{p}}', f'{ours}.ln2.{{p}}'),
        Rule(f'{old}.intermediate.dense.{{p}}', f'{ours}.ffn.layers.0.0.{{p}}'),
        Rule(f'{old}.output.dense.{{p}}', f'{ours}.ffn.layers.1.{{p}}'),
        Rule(f'{new}.layernorm_before.{{p}}', f'{ours}.ln1.{{p}}'),
        Rule(f'{new}.layernorm_after.{{p}}', f'{ours}.ln2.{{p}}'),
        Rule(f'{new}.mlp.fc1.{{p}}', f'{ours}.ffn.layers.0.0.{{p}}'),
        Rule(f'{new}.mlp.fc2.{{p}}', f'{ours}.ffn.layers.1.{{p}}'),
    )


STEM = (
    Rule('embeddings.cls_token', 'cls_token'),
    Rule('embeddings.distillation_token', 'dist_token'),
    Rule('embeddings.register_tokens', 'register_tokens'),
    Rule('embeddings.position_embeddings', 'pos_embed'),
    Rule('embeddings.patch_embeddings.projection.{p}', 'patch_embed.projection.{p}'),
    Rule('layernorm.{p}', 'ln1.{p}'),
)
MARK = 'embeddings.patch_embeddings.projection.weight'
HEADS = (r'pooler\.', r'classifier')
SCALED = r'(encoder\.layer|layers)\.0\.layer_scale1\.lambda1'
RELATIVE = r'(encoder\.layer|layers)\.0\.(lambda_1|.*relative_position_bias_table)'

UNUSED = 'unused_mask_token'


def drop_mask_token(done: Converted) -> None:
    """DINOv2's classes have a mask token, which its networks do not use outside of their own pre-training."""
    if done.tensors.pop(UNUSED, None) is not None:
        done.dropped.append('embeddings.mask_token')


def add_mask_token(tensors: Tensors) -> None:
    """Zeros, as the classes begin with."""
    tensors[UNUSED] = torch.zeros_like(tensors['cls_token'][0])


HF_VIT = Format(
    'hf_vit',
    'Hugging Face ViT or DeiT',
    mark=MARK,
    also=(r'(encoder\.layer|layers)\.0\.layernorm_before\.weight',),
    rules=(*STEM, *attention(OLD, NEW, OURS), *norms_and_mlp(OLD, NEW, OURS)),
    dropped=(*HEADS, r'embeddings\.mask_token'),
)

HF_DINOV2 = Format(
    'hf_dinov2',
    'Hugging Face DINOv2',
    mark=MARK,
    also=(SCALED,),
    rules=(
        *STEM,
        *attention(OLD, OLD, OURS),
        *(Rule(f'{OLD}.norm{n}.{{p}}', f'{OURS}.ln{n}.{{p}}') for n in (1, 2)),
        Rule(f'{OLD}.mlp.fc1.{{p}}', f'{OURS}.ffn.layers.0.0.{{p}}'),
        Rule(f'{OLD}.mlp.fc2.{{p}}', f'{OURS}.ffn.layers.1.{{p}}'),
        Rule(f'{OLD}.layer_scale1.lambda1', f'{OURS}.attn.gamma1.weight'),
        Rule(f'{OLD}.layer_scale2.lambda1', f'{OURS}.ffn.gamma2.weight'),
        Rule('embeddings.mask_token', UNUSED),
    ),
    dropped=HEADS,
    adjust=drop_mask_token,
    restore=add_mask_token,
)

HF_BEIT = Format(
    'hf_beit',
    'Hugging Face BEiT',
    mark=MARK,
    also=(r'(encoder\.layer|layers)\.0\.layernorm_before\.weight', f'{RELATIVE}|encoder\\.relative_position_bias.*'),
    rules=(
        *STEM,
        Rule('embeddings.mask_token', 'mask_token'),
        *attention(OLD, NEW, OURS, key_bias=False),
        *norms_and_mlp(OLD, NEW, OURS),
        *(Rule(f'{block}.lambda_1', f'{OURS}.attn.gamma1.weight') for block in (OLD, NEW)),
        *(Rule(f'{block}.lambda_2', f'{OURS}.ffn.gamma2.weight') for block in (OLD, NEW)),
        Rule('encoder.relative_position_bias.relative_position_bias_table', TABLE),
        Rule(f'{OLD}.attention.attention.relative_position_bias.relative_position_bias_table', f'{OURS}.attn.{TABLE}'),
        Rule(f'{NEW}.relative_position_bias.relative_position_bias_table', f'{OURS}.attn.{TABLE}'),
        Rule('pooler.layernorm.{p}', 'ln2.{p}'),
    ),
    dropped=(*HEADS, r'lm_head', r'.*relative_position_index'),
)

DECODER_BLOCKS = ('decoder.decoder_layers.{i}', 'decoder.decoder_encoder.layer.{i}')

HF_MAE = Format(
    'hf_mae',
    'Hugging Face ViTMAE, encoder and decoder',
    mark='vit.' + MARK,
    also=(r'decoder\.decoder_embed\.weight',),
    rules=(
        *under('vit.', HF_VIT.rules),
        Rule('decoder.decoder_embed.{p}', 'decoder.embed.{p}'),
        Rule('decoder.mask_token', 'decoder.mask_token'),
        Rule('decoder.decoder_pos_embed', 'decoder.pos_embed'),
        Rule('decoder.decoder_norm.{p}', 'decoder.norm.{p}'),
        Rule('decoder.decoder_pred.{p}', 'decoder.predict.{p}'),
        *(
            rule
            for old in DECODER_BLOCKS
            for part in (attention, norms_and_mlp)
            for rule in part(old, DECODER_BLOCKS[0], 'decoder.layers.{i}')
        ),
    ),
)

CLIP_LAYER = 'encoder.layers.{i}'
CLIP_RULES = (
    Rule('embeddings.class_embedding', 'cls_token', FLAT),
    Rule('embeddings.position_embedding.weight', 'pos_embed', FLAT),
    Rule('embeddings.patch_embedding.weight', 'patch_embed.projection.weight'),
    Rule('pre_layrnorm.{p}', 'pre_norm.{p}'),
    *joined(f'{CLIP_LAYER}.self_attn', ('q_proj', 'k_proj', 'v_proj'), f'{OURS}.attn.qkv'),
    Rule(f'{CLIP_LAYER}.self_attn.out_proj.{{p}}', f'{OURS}.attn.proj.{{p}}'),
    Rule(f'{CLIP_LAYER}.layer_norm1.{{p}}', f'{OURS}.ln1.{{p}}'),
    Rule(f'{CLIP_LAYER}.layer_norm2.{{p}}', f'{OURS}.ln2.{{p}}'),
    Rule(f'{CLIP_LAYER}.mlp.fc1.{{p}}', f'{OURS}.ffn.layers.0.0.{{p}}'),
    Rule(f'{CLIP_LAYER}.mlp.fc2.{{p}}', f'{OURS}.ffn.layers.1.{{p}}'),
    Rule('post_layernorm.{p}', 'ln1.{p}'),
)
CLIP_MARK, TOWER = 'embeddings.patch_embedding.weight', 'vision_model.'

HF_CLIP = Format(
    'hf_clip',
    'Hugging Face CLIP',
    mark=TOWER + CLIP_MARK,
    also=(r'vision_model\.pre_layrnorm\.weight',),
    rules=(*under(TOWER, CLIP_RULES), Rule('visual_projection.weight', 'proj.weight')),
    dropped=(r'vision_model\.embeddings\.position_ids', r'(?!vision_model\.)'),
    adjust=fill_patch_bias,
    restore=remove_patch_bias,
)

HF_CLIP_TOWER = Format(
    'hf_clip_tower',
    "Hugging Face CLIP, transformers 5's CLIPVisionModel",
    mark=CLIP_MARK,
    also=(r'pre_layrnorm\.weight',),
    rules=CLIP_RULES,
    dropped=(r'embeddings\.position_ids',),
    adjust=fill_patch_bias,
    restore=remove_patch_bias,
)
