"""Our own names, which are mmpretrain's for its VisionTransformer, and mmpretrain's for BEiT."""

from __future__ import annotations

from mkd_plugin.checkpoint.formats.patch_bias import fill_patch_bias, remove_patch_bias
from mkd_plugin.checkpoint.formats.rules import Format, Rule

__all__ = ['DECODER', 'MKD', 'MMPRETRAIN', 'MMPRETRAIN_BEIT', 'TABLE']

TABLE = 'rel_pos_bias.relative_position_bias_table'

TOKENS = ('cls_token', 'dist_token', 'register_tokens', 'mask_token', 'pos_embed')
MODULES = ('patch_embed.projection', 'pre_norm', 'ln1', 'ln2')
IN_BLOCK = ('ln1', 'attn.qkv', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1')

PLAIN = (
    *(Rule(name, name) for name in TOKENS),
    *(Rule(f'{name}.{{p}}', f'{name}.{{p}}') for name in MODULES),
    *(Rule(f'layers.{{i}}.{name}.{{p}}', f'layers.{{i}}.{name}.{{p}}') for name in IN_BLOCK),
)
SCALES = tuple(Rule(name, name) for name in ('layers.{i}.attn.gamma1.weight', 'layers.{i}.ffn.gamma2.weight'))
RELATIVE = (Rule(TABLE, TABLE), Rule(f'layers.{{i}}.attn.{TABLE}', f'layers.{{i}}.attn.{TABLE}'))

MKD = Format(
    'mkd',
    'mkd_plugin or mmpretrain VisionTransformer',
    mark='layers.0.ln1.weight',
    also=(r'patch_embed\.projection\.weight',),
    rules=(*PLAIN, *SCALES, *RELATIVE, Rule('proj.weight', 'proj.weight')),
    adjust=fill_patch_bias,
)

MMPRETRAIN = Format(
    'mmpretrain',
    'mmpretrain VisionTransformer',
    mark=MKD.mark,
    also=MKD.also,
    rules=(*PLAIN, *SCALES),
    adjust=fill_patch_bias,
    restore=remove_patch_bias,
)

MMPRETRAIN_BEIT = Format(
    'mmpretrain_beit',
    'mmpretrain BEiTViT',
    mark=MKD.mark,
    also=(*MKD.also, r'layers\.0\.(attn\.q_bias|attn\.relative_position_bias_table|gamma_1)'),
    rules=(
        Rule(('layers.{i}.attn.q_bias', None, 'layers.{i}.attn.v_bias'), 'layers.{i}.attn.qkv.bias'),
        *PLAIN,
        Rule('layers.{i}.gamma_1', 'layers.{i}.attn.gamma1.weight'),
        Rule('layers.{i}.gamma_2', 'layers.{i}.ffn.gamma2.weight'),
        Rule(TABLE, TABLE),
        Rule('layers.{i}.attn.relative_position_bias_table', f'layers.{{i}}.attn.{TABLE}'),
    ),
    dropped=(r'(layers\.\d+\.attn|rel_pos_bias)\.relative_position_index',),
)

# What follows `decoder.` in a dict that holds a decoder beside its encoder.
DECODER = (
    'embed.{p}',
    'mask_token',
    'pos_embed',
    'norm.{p}',
    'predict.{p}',
    *(f'layers.{{i}}.{name}.{{p}}' for name in IN_BLOCK),
)
