"""Infer a network's architecture from a state dict in our names and from a file's metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from mkd_plugin.checkpoint.formats.tables import RELATIVE_TABLE
from mkd_plugin.checkpoint.read import CheckpointError, provenance_of

Grid = tuple[int, int]  # patches per column and per row

# Number of heads by width, where a head does not have 64 channels.
HEADS = {1280: 16, 1408: 16}

# Optional parts of a network: the regular expression of a tensor's name, and the option that builds the part.
OPTIONAL_PARTS = {
    'layer scale': (r'layers\.0\.attn\.gamma1\.weight', 'layer_scale=…'),
    'a relative position bias shared by all blocks': (re.escape(RELATIVE_TABLE), "relative_position='shared'"),
    'a relative position bias in every block': (
        rf'layers\.0\.attn\.{re.escape(RELATIVE_TABLE)}',
        "relative_position='per_block'",
    ),
    'a norm before the first block': (r'pre_norm\.weight', 'pre_norm=True'),
    'a distillation token': (r'dist_token', 'distillation_token=True'),
    'register tokens': (r'register_tokens', 'num_registers=…'),
    'absolute positions': (r'pos_embed', "position='learned'"),
}
ACTIVATIONS = ('gelu', 'quick_gelu')  # the same names as Hugging Face's


class LoadableViT(Protocol):
    """What loading must know about a ViT besides its tensors; ``VisionTransformer`` documents the attributes."""

    arch: Any  # with width, depth and num_heads
    grid: Grid
    patch_size: int
    num_placed: int  # prefix tokens that have a position
    relative_position: str | None

    def state_dict(self) -> dict[str, Any]: ...


def infer_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Infer ``width``, ``depth``, ``patch``, ``channels``, ``mlp`` (hidden width) and, from a relative table, ``heads``.

    Sizes that the tensors do not determine are left out.
    """
    sizes: dict[str, int] = {}
    if 'patch_embed.projection.weight' in tensors:
        width, channels, patch, _ = tensors['patch_embed.projection.weight'].shape
        sizes |= dict(width=width, channels=channels, patch=patch)
    blocks = (re.match(r'layers\.(\d+)\.', name) for name in tensors)
    depth = max((int(block[1]) + 1 for block in blocks if block), default=0)
    if depth:
        sizes['depth'] = depth
    if 'layers.0.ffn.layers.0.0.weight' in tensors:
        sizes['mlp'] = tensors['layers.0.ffn.layers.0.0.weight'].shape[0]
    for table in (RELATIVE_TABLE, f'layers.0.attn.{RELATIVE_TABLE}'):
        if table in tensors:
            sizes['heads'] = tensors[table].shape[1]
    return sizes


def optional_parts(tensors: Mapping[str, Tensor]) -> set[str]:
    """List the parts of ``OPTIONAL_PARTS`` that the network has."""
    return {
        part for part, (pattern, _) in OPTIONAL_PARTS.items() if any(re.fullmatch(pattern, name) for name in tensors)
    }


def infer_options(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the options of ``VisionTransformer`` from a state dict in our names.

    Names and shapes do not determine the number of heads, the activation, the norms' eps and a grid that is not square.
    Usual values are taken for these unless they are known.

    Args:
        tensors: The state dict.
        known: Known options, which take precedence. ``num_heads`` may be given instead of ``arch``.

    Raises:
        CheckpointError: The grid of the positions is not square, and ``img_size`` is not known.
    """
    sizes = infer_sizes(tensors)
    known = dict(known)
    width = sizes['width']
    heads = known.pop('num_heads', sizes.get('heads', HEADS.get(width, max(width // 64, 1))))
    parts = optional_parts(tensors)
    pre_norm = 'a norm before the first block' in parts
    relative = 'shared' if RELATIVE_TABLE in tensors else 'per_block' if 'heads' in sizes else None
    options = dict(
        arch=dict(width=width, depth=sizes['depth'], num_heads=heads, mlp_ratio=sizes['mlp'] / width),
        patch_size=sizes['patch'],
        in_channels=sizes['channels'],
        position='learned' if 'pos_embed' in tensors else 'none',
        relative_position=relative,
        layer_scale=1.0 if 'layer scale' in parts else None,
        activation='quick_gelu' if pre_norm else 'gelu',
        norm_eps=1e-5 if pre_norm else 1e-6,
        pre_norm=pre_norm,
        projection=tensors['proj.weight'].shape[0] if 'proj.weight' in tensors else None,
        distillation_token='dist_token' in tensors,
        num_registers=tensors['register_tokens'].shape[1] if 'register_tokens' in tensors else 0,
    )
    if 'img_size' not in known:
        options['img_size'] = infer_image_side(tensors, sizes['patch'])
    return {**options, **known}


def infer_image_side(tensors: Mapping[str, Tensor], patch: int) -> int:
    """Infer the side of the square image that the position tables are for, pixels."""
    grid = None
    relative = next((tensors[name] for name in tensors if name.endswith(RELATIVE_TABLE)), None)
    if 'pos_embed' in tensors:
        num_prefix = 2 if 'dist_token' in tensors else 1
        grid = infer_grid(tensors['pos_embed'].shape[1] - num_prefix, (1, 1))
    elif relative is not None:
        grid = infer_grid(relative.shape[0] - 3, (1, 1), relative=True)
    if grid is None:
        raise CheckpointError(
            'The image size cannot be inferred from the position tables in the file: give img_size=(height, width).'
        )
    return grid[0] * patch


def infer_grid(num_entries: int, own_grid: Grid, *, relative: bool = False) -> Grid | None:
    """Infer the grid of a position table from its length: a square, or the network's own grid.

    ``num_entries`` are without those of cls and other prefix tokens; ``relative`` ones are offsets,
    (2 · rows − 1)(2 · columns − 1). None if neither grid fits, or both fit and differ.
    """
    extents = tuple(2 * side - 1 for side in own_grid) if relative else own_grid
    fits_own = extents[0] * extents[1] == num_entries
    root = round(num_entries**0.5)
    if root**2 != num_entries or (relative and root % 2 == 0):
        return own_grid if fits_own else None
    if fits_own:
        return own_grid if own_grid[0] == own_grid[1] else None
    side = (root + 1) // 2 if relative else root
    return side, side


def options_in_metadata(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Read options of ``VisionTransformer`` from a file's metadata; ``num_heads`` appears without a complete ``arch``.

    Raises:
        CheckpointError: The metadata name an activation that our network does not have.
    """
    options = provenance_of(checkpoint).get('backbone')
    if isinstance(options, dict):
        return options
    meta = checkpoint.get('meta')
    config = meta.get('hf_config') if isinstance(meta, dict) else None
    if not isinstance(config, dict):
        return {}
    config = config.get('vision_config', config)  # of a whole CLIP
    activation = config.get('hidden_act', 'gelu')
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"The file's network has the activation '{activation}'; ours has {sorted(ACTIVATIONS)}.")
    options = {
        'num_heads': config.get('num_attention_heads'),
        'norm_eps': config.get('layer_norm_eps'),
        'img_size': config.get('image_size'),
        'patch_size': config.get('patch_size'),
        'activation': activation,
    }
    return {name: value for name, value in options.items() if value is not None}


def grid_of_options(options: Mapping[str, Any]) -> Grid | None:
    """Compute the grid of a network from its options; None if they do not determine it."""
    size: int | Sequence[int] | None = options.get('img_size')
    patch = options.get('patch_size')
    if size is None or not isinstance(patch, int):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch
