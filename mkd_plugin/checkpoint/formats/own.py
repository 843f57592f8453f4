"""Networks with a norm before the first block (CLIP) embed patches without a bias; ours has one, of zeros."""

from __future__ import annotations

from mkd_plugin.checkpoint.formats.rules import FLAT, TRANSPOSED, Converted, Format, Rule, Tensors

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
