"""timm's names and those that follow them: DeiT, DINO, MoCo v3, DINOv2, MAE, dBOT, DMAE, SLIP, BEiT."""

from __future__ import annotations

import torch

from mkd_plugin.checkpoint.formats.own import TABLE, fill_patch_bias, remove_patch_bias
from mkd_plugin.checkpoint.formats.rules import TRANSPOSED, Converted, Format, Rule, Tensors, under


def block(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The linear layers and norms of a block."""
    return (
        Rule(f'{theirs}.norm1.{{p}}', f'{ours}.ln1.{{p}}'),
        Rule(f'{theirs}.attn.qkv.{{p}}', f'{ours}.attn.qkv.{{p}}'),
        Rule(f'{theirs}.attn.proj.{{p}}', f'{ours}.attn.proj.{{p}}'),
        Rule(f'{theirs}.norm2.{{p}}', f'{ours}.ln2.{{p}}'),
        Rule(f'{theirs}.mlp.fc1.{{p}}', f'{ours}.ffn.layers.0.0.{{p}}'),
        Rule(f'{theirs}.mlp.fc2.{{p}}', f'{ours}.ffn.layers.1.{{p}}'),
    )


BLOCK = block('blocks.{i}', 'layers.{i}')
STEM = (
    Rule('cls_token', 'cls_token'),
    Rule('pos_embed', 'pos_embed'),
    Rule('patch_embed.proj.{p}', 'patch_embed.projection.{p}'),
    Rule('norm.{p}', 'ln1.{p}'),
    Rule('fc_norm.{p}', 'ln2.{p}'),
)
SCALES = (
    Rule('blocks.{i}.ls1.gamma', 'layers.{i}.attn.gamma1.weight'),
    Rule('blocks.{i}.ls2.gamma', 'layers.{i}.ffn.gamma2.weight'),
)
DECODER = (
    Rule('decoder_embed.{p}', 'decoder.embed.{p}'),
    Rule('mask_token', 'decoder.mask_token'),
    Rule('decoder_pos_embed', 'decoder.pos_embed'),
    *block('decoder_blocks.{i}', 'decoder.layers.{i}'),
    Rule('decoder_norm.{p}', 'decoder.norm.{p}'),
)
HEADS = (r'head', r'pre_logits\.')
MARK = 'blocks.0.attn.qkv.weight'
PATCHES = r'patch_embed\.proj\.weight'


def adjust_timm(done: Converted) -> None:
    """Give cls a position of zeros where only patches have one, and tell CLIP's projection from a classifier.

    timm keeps the projection as a head whose bias is zero, and no trained classifier's is.
    """
    tensors = done.tensors
    fill_patch_bias(done)
    if 'register_tokens' in tensors and 'pos_embed' in tensors:
        positions_1LD = tensors['pos_embed']
        tensors['pos_embed'] = torch.cat([torch.zeros_like(positions_1LD[:, :1]), positions_1LD], dim=1)
    head = {name: tensors.pop(name) for name in ('head.weight', 'head.bias') if name in tensors}
    if 'pre_norm.weight' in tensors and 'head.weight' in head and not ('head.bias' in head and head['head.bias'].any()):
        tensors['proj.weight'] = head['head.weight']
    else:
        done.dropped += head


def restore_timm(tensors: Tensors) -> None:
    """The inverse: cls takes its position into itself beside registers, and the projection becomes a head."""
    remove_patch_bias(tensors)
    if 'register_tokens' in tensors:
        positions_1ND = tensors['pos_embed']
        tensors['cls_token'] = tensors['cls_token'] + positions_1ND[:, :1]
        tensors['pos_embed'] = positions_1ND[:, 1:]
    if 'proj.weight' in tensors:
        weight = tensors['head.weight'] = tensors.pop('proj.weight')
        tensors['head.bias'] = weight.new_zeros(weight.shape[0])


TIMM = Format(
    'timm',
    'timm, DeiT, DINO, MoCo v3 or MAE encoder',
    mark=MARK,
    also=(PATCHES,),
    rules=(
        *STEM,
        Rule('dist_token', 'dist_token'),
        Rule('reg_token', 'register_tokens'),
        Rule('norm_pre.{p}', 'pre_norm.{p}'),
        *BLOCK,
        *SCALES,
        Rule('head.{p}', 'head.{p}'),
    ),
    dropped=HEADS,
    adjust=adjust_timm,
    restore=restore_timm,
)

DINOV2 = Format(
    'dinov2',
    'DINOv2 reference',
    mark=MARK,
    also=(PATCHES, r'mask_token', r'blocks\.0\.ls1\.gamma'),
    rules=(*STEM, Rule('register_tokens', 'register_tokens'), *BLOCK, *SCALES),
    dropped=(*HEADS, r'mask_token'),
)

MAE = Format(
    'mae',
    'MAE reference, encoder and decoder',
    mark=MARK,
    also=(PATCHES, r'decoder_embed\.weight', r'decoder_pred\.weight'),
    rules=(*STEM, *BLOCK, *DECODER, Rule('decoder_pred.{p}', 'decoder.predict.{p}')),
    dropped=HEADS,
)

DBOT = Format(
    'dbot',
    'dBOT reference, encoder and decoder',
    mark=MARK,
    also=(PATCHES, r'decoder_embed\.weight', r'decoder_predp\.weight'),
    rules=(*STEM, *BLOCK, *DECODER, Rule('decoder_predp.{p}', 'decoder.predict.{p}')),
    dropped=HEADS,
)

DMAE = Format(
    'dmae',
    'DMAE reference, encoder, decoder and projectors',
    mark=MARK,
    also=(*MAE.also, r'aligned_feature_projection_heads\.0\..*'),
    rules=MAE.rules,
    dropped=(*HEADS, r'aligned_feature_projection_heads\.'),
)

SLIP = Format(
    'slip',
    'SLIP, and its CLIP and SimCLR',
    mark='visual.blocks.0.attn.qkv.weight',
    also=(r'visual\.patch_embed\.proj\.weight', r'image_projection|image_mlp\.layer1\.weight'),
    rules=(*under('visual.', (*STEM, *BLOCK)), Rule('image_projection', 'proj.weight', TRANSPOSED)),
    dropped=(r'visual\.head', r'(?!visual\.)'),
)

BEIT = Format(
    'beit',
    'BEiT or BEiT v2',
    mark=MARK,
    also=(PATCHES, r'blocks\.0\.attn\.(q_bias|relative_position_bias_table)'),
    rules=(
        Rule(('blocks.{i}.attn.q_bias', None, 'blocks.{i}.attn.v_bias'), 'layers.{i}.attn.qkv.bias'),
        *STEM,
        Rule('mask_token', 'mask_token'),
        *BLOCK,
        Rule('blocks.{i}.gamma_1', 'layers.{i}.attn.gamma1.weight'),
        Rule('blocks.{i}.gamma_2', 'layers.{i}.ffn.gamma2.weight'),
        Rule(TABLE, TABLE),
        Rule('blocks.{i}.attn.relative_position_bias_table', f'layers.{{i}}.attn.{TABLE}'),
    ),
    dropped=(*HEADS, r'lm_head\.', r'cls_pt_', r'(blocks\.\d+\.attn|rel_pos_bias)\.relative_position_index'),
)
