"""Infer a network's architecture from a state dict in our names and from a file's metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from mkd_plugin.checkpoint.formats.tables import RELATIVE_TABLE
from mkd_plugin.checkpoint.read import CheckpointError, provenance_of
from mkd_plugin.utils.files import printable

Grid = tuple[int, int]  # patches per column and per row

# Number of heads by width, where a head does not have 64 channels: of DINOv3, of SigLIP, and of others.
HEADS_DINOV3, HEADS_SIGLIP, HEADS = {4096: 32}, {1152: 16, 1536: 16}, {1280: 16, 1408: 16}

PATCHES, FIRST_TABLE = 'patch_embed.projection.weight', f'layers.0.attn.{RELATIVE_TABLE}'
FIRST_MLP, LAST_MLP = (f'layers.0.ffn.layers.{name}.weight' for name in ('0.0', '1'))
MLP_NORM, ATTENTION_NORM = 'layers.0.ffn.layers.0.2.weight', 'layers.0.attn.inner_norm.weight'
MAX_SIDE = 2**20  # of an image or a network, according to a file
MAX_TOKENS = 2**16  # of an image, according to a file: 4,096 pixels with patches of 16
# Options that a file may state and its tensors determine.
DETERMINED = (
    'patch_size', 'in_channels', 'projection', 'cls_token', 'distillation_token', 'num_registers', 'relative_position',
    'pre_norm', 'inner_norm', 'width', 'depth',
)  # fmt: skip

# Optional parts of a network: a tensor that only networks with the part have, and the option that builds it.
OPTIONAL_PARTS = {
    'layer scale': ('layers.0.attn.gamma1.weight', 'layer_scale=…'),
    'a relative position bias shared by all blocks': (RELATIVE_TABLE, "relative_position='shared'"),
    'a relative position bias in every block': (FIRST_TABLE, "relative_position='per_block'"),
    'a norm before the first block': ('pre_norm.weight', 'pre_norm=True'),
    'a distillation token': ('dist_token', 'distillation_token=True'),
    'register tokens': ('register_tokens', 'num_registers=…'),
    'absolute positions': ('pos_embed', "position='learned'"),
}
# Our activations by Hugging Face's names; with SiLU, its DINOv3 has gates.
ACTIVATIONS = dict(gelu='gelu', quick_gelu='quick_gelu', gelu_pytorch_tanh='gelu_tanh', silu='swiglu')
POSITIONS, ROPES = ('sincos', 'learned', 'none'), (None, 'dinov3', 'eva02')
# Our options by Hugging Face's names of them.
HUGGING_FACE = dict(
    num_heads='num_attention_heads', norm_eps='layer_norm_eps', img_size='image_size', patch_size='patch_size'
)
ARCH_NEEDS = {'width', 'depth', 'num_heads'}  # 'mlp_ratio' may be added


class LoadableViT(Protocol):
    """What loading must know about a ViT besides its tensors; ``VisionTransformer`` documents the attributes."""

    arch: Any  # with width, depth and num_heads
    grid: Grid
    patch_size: int
    num_placed: int  # prefix tokens that have a position
    relative_position: str | None
    options: dict[str, Any]

    def state_dict(self) -> dict[str, Any]: ...


def infer_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Infer ``width``, ``depth``, ``patch``, ``channels``, ``mlp`` (hidden width) and, from a relative table, ``heads``.

    Sizes that the tensors do not determine are left out.
    """
    sizes: dict[str, int] = {}
    if (shape := shape_of(tensors, PATCHES, 4)) is not None:
        sizes |= dict(width=shape[0], channels=shape[1], patch=shape[2])
    if blocks := block_numbers(tensors):
        sizes['depth'] = max(blocks) + 1
    if (shape := shape_of(tensors, LAST_MLP, 2)) is not None:
        sizes['mlp'] = shape[1]
    for table in (RELATIVE_TABLE, FIRST_TABLE):
        if (shape := shape_of(tensors, table, 2)) is not None:
            sizes['heads'] = shape[1]
    return sizes


def block_numbers(tensors: Mapping[str, Tensor]) -> set[int]:
    return {int(block[1]) for name in tensors if (block := re.match(r'layers\.([0-9]{1,4})\.', name))}


def shape_of(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...] | None:
    """Return a tensor's shape; None if there is no such tensor. Raises CheckpointError if it has other dimensions."""
    if name not in tensors:
        return None
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(f'{name} is {shape} in the file; a ViT has {dimensions} dimensions there.')
    return shape


def is_gated(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs have gates: their first layer then has twice the channels that their last one reads."""
    first, last = shape_of(tensors, FIRST_MLP, 2), shape_of(tensors, LAST_MLP, 2)
    return first is not None and last is not None and first[0] == 2 * last[1]


def infer_rope(tensors: Mapping[str, Tensor]) -> str | None:
    """Infer the form of rotary positions, of which there are no tensors, from what else DINOv3 and EVA-02 have."""
    table, scaled = 'pos_embed' in tensors, OPTIONAL_PARTS['layer scale'][0] in tensors
    if not table and 'register_tokens' in tensors:
        return 'dinov3'
    return 'eva02' if table and is_gated(tensors) and not scaled else None  # DINOv2-g has gates and layer scale


def infer_inner_norm(tensors: Mapping[str, Tensor]) -> str | None:
    """Infer which residual branches have a norm inside."""
    return 'both' if ATTENTION_NORM in tensors else 'mlp' if MLP_NORM in tensors else None


def count_placed(tensors: Mapping[str, Tensor]) -> int:
    """Count the prefix tokens that have a position."""
    return ('cls_token' in tensors) + ('dist_token' in tensors)


def optional_parts(tensors: Mapping[str, Tensor]) -> set[str]:
    return {part for part, (name, _) in OPTIONAL_PARTS.items() if name in tensors}


def infer_options(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the options of ``VisionTransformer`` from a state dict in our names.

    Names and shapes do not determine the number of heads, the activation, the norms' eps and a grid that is not square.
    Usual values are taken for these unless they are known.

    Args:
        tensors: The state dict.
        known: Known options, which take precedence. ``num_heads`` may be given instead of ``arch``.

    Raises:
        CheckpointError: The grid of the positions is not square, and ``img_size`` is not known; the tensors are not those
            of a whole network.
    """
    sizes = infer_sizes(tensors)
    blocks = len(block_numbers(tensors))
    if not {'width', 'depth', 'mlp'} <= sizes.keys() or blocks != sizes['depth']:
        raise CheckpointError(
            f'Its network is not whole: of the sizes that build one, its tensors determine {sizes}, and they are of '
            f'{blocks} blocks.'
        )
    known = dict(known)
    width = sizes['width']
    rope, has_cls = infer_rope(tensors), 'cls_token' in tensors
    usual = HEADS_DINOV3 if rope == 'dinov3' else HEADS if has_cls else HEADS_SIGLIP
    heads = known.pop('num_heads', sizes.get('heads', usual.get(width, max(width // 64, 1))))
    parts = optional_parts(tensors)
    pre_norm = 'a norm before the first block' in parts
    relative = 'shared' if RELATIVE_TABLE in tensors else 'per_block' if 'heads' in sizes else None
    options = dict(
        arch=dict(width=width, depth=sizes['depth'], num_heads=heads, mlp_ratio=sizes['mlp'] / width),
        patch_size=sizes['patch'],
        in_channels=sizes['channels'],
        position='learned' if 'pos_embed' in tensors else 'none',
        relative_position=relative,
        rope=rope,
        layer_scale=1.0 if 'layer scale' in parts else None,
        activation='swiglu' if is_gated(tensors) else 'quick_gelu' if pre_norm else 'gelu',
        inner_norm=infer_inner_norm(tensors),
        norm_eps=1e-5 if pre_norm or rope == 'dinov3' else 1e-6,
        pre_norm=pre_norm,
        final_norm='ln1.weight' in tensors,
        projection=tensors['proj.weight'].shape[0] if 'proj.weight' in tensors else None,
        cls_token=has_cls,
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
        grid = infer_grid(tensors['pos_embed'].shape[1] - count_placed(tensors), (1, 1))
    elif relative is not None:
        grid = infer_grid(relative.shape[0] - 3, (1, 1), relative=True)
    elif infer_rope(tensors) is not None:  # for any grid
        grid = (224 // patch, 224 // patch)
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
    root = round(max(num_entries, 0) ** 0.5)
    if num_entries < 1 or root**2 != num_entries or (relative and root % 2 == 0):
        return own_grid if fits_own else None
    if fits_own:
        return own_grid if own_grid[0] == own_grid[1] else None
    side = (root + 1) // 2 if relative else root
    return side, side


def check_claims(tensors: Mapping[str, Tensor], claims: Mapping[str, Any]) -> None:
    """Compare what a file states about its network with its tensors in our names, before a network is built.

    Raises CheckpointError if they are of different networks.
    """
    if not claims:
        return
    size = claims.get('img_size', 1)
    sides = [size, size] if isinstance(size, int) else list(size)
    options = infer_options(tensors, {'img_size': sides})
    found, told = {**options, **options['arch']}, {**claims, **claims.get('arch', {})}
    width = found['width']
    different = {name: found[name] for name in DETERMINED if told.get(name, found[name]) != found[name]}
    different |= dict.fromkeys(told.keys() - found.keys(), 'no option')
    if round(told.get('mlp_ratio', found['mlp_ratio']) * width) != round(found['mlp_ratio'] * width):
        different['mlp_ratio'] = found['mlp_ratio']
    if width % told.get('num_heads', 1):
        different['num_heads'] = f'no divisor of the width {width}'
    if told.get('position', 'none') != 'none' and found['position'] == 'none':
        different['position'] = 'none'
    grid = sides[0] // found['patch_size'], sides[1] // found['patch_size']
    table = shape_of(tensors, 'pos_embed', 3)
    entries = grid[0] * grid[1] if table is None else table[1] - count_placed(tensors)
    if 'img_size' in claims and (entries != grid[0] * grid[1] or entries > MAX_TOKENS):
        different['patches'] = entries
    if different:
        lines = [
            f'{name} {told.get(name, told.get("img_size"))!r:.100}, which is {own}' for name, own in different.items()
        ]
        raise CheckpointError(
            f'Its metadata are of another network than its tensors: {"; ".join(lines)} in the tensors.'
        )


def options_in_metadata(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Read options of ``VisionTransformer`` from a file's metadata; ``num_heads`` appears without a complete ``arch``.

    Raises:
        CheckpointError: The metadata name an activation that our network does not have, or impossible sizes.
    """
    options = provenance_of(checkpoint).get('backbone')
    if isinstance(options, dict):
        return check_types({'rope': None, **options})
    meta = checkpoint.get('meta')
    config = meta.get('hf_config') if isinstance(meta, dict) else None
    if not isinstance(config, dict):
        return {}
    config = config.get('vision_config', config)  # of a whole CLIP
    activation = config.get('hidden_act', 'gelu')
    if activation not in tuple(ACTIVATIONS):
        raise CheckpointError(
            f"The file's network has the activation {activation!r:.100}; ours has {sorted(ACTIVATIONS.values())}."
        )
    stated = {ours: config[theirs] for ours, theirs in HUGGING_FACE.items() if config.get(theirs) is not None}
    return check_types({**stated, 'activation': ACTIVATIONS[activation]})


def check_types(options: dict[str, Any]) -> dict[str, Any]:
    """Return options from a file's metadata. Raises CheckpointError if they are not numbers where sizes belong."""
    size, arch = options.get('img_size', 1), options.get('arch', {})
    sides = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size,)
    complete = isinstance(arch, dict) and arch.keys() - {'mlp_ratio'} == ARCH_NEEDS
    arch = arch if complete or 'arch' not in options else {'': 'unknown'}
    whole = [*sides, *(options.get(name, 1) for name in ('patch_size', 'num_heads'))]
    whole += [number for name, number in arch.items() if name != 'mlp_ratio']
    scale = options.get('layer_scale')
    reals = [options.get('norm_eps', 1), scale or 1, arch.get('mlp_ratio', 1)]
    valid = all(type(number) is int for number in whole) and all(type(number) in (int, float) for number in reals)
    valid = valid and (scale is None or type(scale) in (int, float))
    known = options.get('activation', 'gelu') in ACTIVATIONS.values() and options.get('position', 'none') in POSITIONS
    if (
        not valid
        or not known
        or options.get('rope') not in ROPES
        or not all(0 < number < MAX_SIDE for number in [*whole, *reals])
    ):
        raise CheckpointError(f'Its metadata state what no network has: {printable(repr(options), 300)}.')
    return options


def grid_of_options(options: Mapping[str, Any]) -> Grid | None:
    """Compute the grid of a network from its options; None if they do not determine it."""
    size: int | Sequence[int] | None = options.get('img_size')
    patch = options.get('patch_size')
    if size is None or not isinstance(patch, int):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch
