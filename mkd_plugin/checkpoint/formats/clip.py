"""The visual tower of OpenAI's CLIP, which OpenCLIP names alike."""

from __future__ import annotations

from mkd_plugin.checkpoint.formats.patch_bias import fill_patch_bias, remove_patch_bias
from mkd_plugin.checkpoint.formats.rules import Format, Rule
from mkd_plugin.checkpoint.formats.tensors import FLAT, TRANSPOSED

__all__ = ['CLIP']

THEIRS, OURS = 'transformer.resblocks.{i}', 'layers.{i}'

CLIP = Format(
    'clip',
    'CLIP of OpenAI or OpenCLIP, visual tower',
    mark='class_embedding',
    also=(r'conv1\.weight', r'transformer\.resblocks\.0\.attn\.in_proj_weight'),
    rules=(
        Rule('class_embedding', 'cls_token', FLAT),
        Rule('positional_embedding', 'pos_embed', FLAT),
        Rule('conv1.weight', 'patch_embed.projection.weight'),
        Rule('ln_pre.{p}', 'pre_norm.{p}'),
        Rule(f'{THEIRS}.ln_1.{{p}}', f'{OURS}.ln1.{{p}}'),
        Rule(f'{THEIRS}.attn.in_proj_weight', f'{OURS}.attn.qkv.weight'),
        Rule(f'{THEIRS}.attn.in_proj_bias', f'{OURS}.attn.qkv.bias'),
        Rule(f'{THEIRS}.attn.out_proj.{{p}}', f'{OURS}.attn.proj.{{p}}'),
        Rule(f'{THEIRS}.ln_2.{{p}}', f'{OURS}.ln2.{{p}}'),
        Rule(f'{THEIRS}.mlp.c_fc.{{p}}', f'{OURS}.ffn.layers.0.0.{{p}}'),
        Rule(f'{THEIRS}.mlp.c_proj.{{p}}', f'{OURS}.ffn.layers.1.{{p}}'),
        Rule(f'{THEIRS}.ls_1.gamma', f'{OURS}.attn.gamma1.weight'),
        Rule(f'{THEIRS}.ls_2.gamma', f'{OURS}.ffn.gamma2.weight'),
        Rule('ln_post.{p}', 'ln1.{p}'),
        Rule('proj', 'proj.weight', TRANSPOSED),
    ),
    adjust=fill_patch_bias,
    restore=remove_patch_bias,
)
