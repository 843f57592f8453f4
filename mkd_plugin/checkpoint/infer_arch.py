"""Which network a state dict (in our names) is of, as far as names and shapes tell it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mkd_plugin.checkpoint.formats.own import TABLE
from mkd_plugin.checkpoint.read import provenance_of
from mkd_plugin.checkpoint.resize import deduce_grid

# Width of a head where it is not 64, by the width of the network.
HEADS = {1280: 16, 1408: 16}

# What a network may have beside a plain ViT: how a tensor of it is called, and the option that gives it to a network.
FEATURES = {
    'layer scale': (r'layers\.0\.attn\.gamma1\.weight', 'layer_scale=…'),
    'a relative position bias shared by all blocks': (re.escape(TABLE), "relative_position='shared'"),
    'a relative position bias in every block': (
        rf'layers\.0\.attn\.{re.escape(TABLE)}',
        "relative_position='per_block'",
    ),
    'a norm before the first block': (r'pre_norm\.weight', 'pre_norm=True'),
    'a distillation token': (r'dist_token', 'distillation_token=True'),
    'register tokens': (r'register_tokens', 'num_registers=…'),
    'absolute positions': (r'pos_embed', "position='learned'"),
}


def anatomy(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes: ``width``, ``depth``, ``patch``, ``channels``, ``mlp`` (hidden width) and, if a relative table tells it,
    ``heads``. What the tensors do not tell is left out."""
    found: dict[str, Any] = {}
    if 'patch_embed.projection.weight' in tensors:
        width, channels, patch, _ = tensors['patch_embed.projection.weight'].shape
        found |= dict(width=width, channels=channels, patch=patch)
    blocks = (re.match(r'layers\.(\d+)\.', name) for name in tensors)
    depth = max((int(block[1]) + 1 for block in blocks if block), default=0)
    if depth:
        found['depth'] = depth
    if 'layers.0.ffn.layers.0.0.weight' in tensors:
        found['mlp'] = tensors['layers.0.ffn.layers.0.0.weight'].shape[0]
    for table in (TABLE, f'layers.0.attn.{TABLE}'):
        if table in tensors:
            found['heads'] = tensors[table].shape[1]
    return found


def features_of(tensors: Mapping[str, Tensor]) -> set[str]:
    """What the network has beside a plain ViT: keys of ``FEATURES``."""
    return {name for name, (pattern, _) in FEATURES.items() if any(re.fullmatch(pattern, tensor) for tensor in tensors)}


def network_options(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``VisionTransformer`` for a state dict.

    Names and shapes do not tell the number of heads, the activation, the norms' eps and a grid that is no square: there the
    usual values are taken unless they are known.

    Args:
        tensors: In our names.
        known: Options that are known; they come first. ``num_heads`` may stand for one in ``arch``.

    Raises:
        ValueError: The grid of the positions is no square, and ``img_size`` is not known.
    """
    sizes = anatomy(tensors)
    known = dict(known)
    width = sizes['width']
    heads = known.pop('num_heads', sizes.get('heads', HEADS.get(width, max(width // 64, 1))))
    pre_norm = 'pre_norm.weight' in tensors
    scale, registers, projection = (
        tensors.get(name) for name in ('layers.0.attn.gamma1.weight', 'register_tokens', 'proj.weight')
    )
    relative = 'shared' if TABLE in tensors else 'per_block' if f'layers.0.attn.{TABLE}' in tensors else None
    options = dict(
        arch=dict(width=width, depth=sizes['depth'], num_heads=heads, mlp_ratio=sizes['mlp'] / width),
        patch_size=sizes['patch'],
        in_channels=sizes['channels'],
        position='learned' if 'pos_embed' in tensors else 'none',
        relative_position=relative,
        layer_scale=None if scale is None else 1.0,
        activation='quick_gelu' if pre_norm else 'gelu',
        norm_eps=1e-5 if pre_norm else 1e-6,
        pre_norm=pre_norm,
        projection=None if projection is None else projection.shape[0],
        distillation_token='dist_token' in tensors,
        num_registers=0 if registers is None else registers.shape[1],
    )
    if 'img_size' not in known:
        options['img_size'] = image_side(tensors, sizes['patch'])
    return {**options, **known}


def image_side(tensors: Mapping[str, Tensor], patch: int) -> int:
    """Side of the square image the tables are for. Raises ValueError if they are for no square, or there are none."""
    prefix = 2 if 'dist_token' in tensors else 1
    relative = next((tensors[name] for name in tensors if name.endswith(TABLE)), None)
    if 'pos_embed' in tensors:
        grid = deduce_grid(tensors['pos_embed'].shape[1] - prefix, (1, 1))
    else:
        grid = None if relative is None else deduce_grid(relative.shape[0] - 3, (1, 1), relative=True)
    if grid is None:
        raise ValueError(
            'The file does not tell for which image size its positions are: give img_size=(height, width).'
        )
    return grid[0] * patch


ACTIVATIONS = {'gelu': 'gelu', 'quick_gelu': 'quick_gelu'}


def stated_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``VisionTransformer`` that a file states; ``num_heads`` stands beside them where ``arch`` is not all known.

    Raises:
        ValueError: It states an activation that our network does not have.
    """
    options = provenance_of(checkpoint).get('backbone')
    if isinstance(options, dict):
        return options
    meta = checkpoint.get('meta')
    config = meta.get('hf_config') if isinstance(meta, dict) else None
    if not isinstance(config, dict):
        return {}
    config = config.get('vision_config', config)  # of a whole CLIP
    found = {
        'num_heads': config.get('num_attention_heads'),
        'norm_eps': config.get('layer_norm_eps'),
        'img_size': config.get('image_size'),
        'patch_size': config.get('patch_size'),
        'activation': activation_of(config.get('hidden_act', 'gelu')),
    }
    return {name: value for name, value in found.items() if value is not None}


def activation_of(name: str) -> str:
    """Our name of Hugging Face's activation. Raises ValueError if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"The file's network has the activation '{name}'; ours has {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def stated_grid(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Patches per column and row, if the options tell it."""
    size, patch = options.get('img_size'), options.get('patch_size')
    if size is None or not isinstance(patch, int):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch
