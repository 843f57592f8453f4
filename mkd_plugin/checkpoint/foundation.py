"""Recognise the files of foundation models and convert them to timm's names; ``foundation.yml`` lists their layouts.

:func:`identify` finds the network, :meth:`Foundation.to_timm` gives its tensors by timm's names, whichever program wrote
them, and :meth:`Foundation.sentence` and :meth:`Foundation.config` say what it is and which teacher takes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mkd_plugin.checkpoint.formats.rules import Format, Tensors
from mkd_plugin.checkpoint.formats.tables import read_rules
from mkd_plugin.checkpoint.read import CheckpointError, refusing

# timm is imported inside functions: `import mkd_plugin` would take seconds longer.

MAX_CANDIDATES = 4  # places in a file that are compared with a layout
MAX_BLOCKS = 1000
MAX_SIDE = 257  # of a grid of positions, whose side is found from its length
PATCHES = r'(patch_embed\.proj|conv1|patchifier\.proj|embedder)\.weight$'  # names of the patches' projection
SPLIT = 'attn_pool.qkv.'  # queries, keys and values of a pooling, which timm stores as `q` and `kv`


@dataclass(frozen=True)
class Layout:
    """One way in which a family of networks is published."""

    family: str  #: Name for people
    layout: str  #: Whose names these are
    module: str  #: Module of ``timm.models`` with the network's class
    #: How our own ViT loads it: 'by timm names', 'as it is', which is one of ``formats.yml``, or None if it cannot
    our_vit: str | None
    mark: str  #: A name that every such file has; the text before it is the network's prefix
    also: tuple[str, ...] = ()  #: Regular expressions of further names that it has
    lacks: tuple[str, ...] = ()  #: Regular expressions of names that it does not have
    #: Table from its names to timm's; None if timm's own filter reads them, or if they are timm's
    table: Format | None = None

    def matches(self, names: Iterable[str]) -> bool:
        """Check the names of a network, without its prefix."""
        found = [any(re.fullmatch(pattern, name) for name in names) for pattern in (*self.also, *self.lacks)]
        return all(found[: len(self.also)]) and not any(found[len(self.also) :])


@dataclass(frozen=True)
class Foundation:
    """A foundation model in a file."""

    layout: Layout
    weights: Mapping[str, Tensor]  #: By the file's names without the prefix

    @property
    def family(self) -> str:
        """Name for people. SigLIP 2's NaFlex networks have a matrix where the others have a convolution."""
        patches = self.weights.get(self.layout.mark)
        is_matrix = 'embedding' in self.layout.mark and patches is not None and patches.ndim == 2
        return 'SigLIP 2 NaFlex' if is_matrix else self.layout.family

    def for_filter(self) -> Tensors:
        """Return the tensors by names that the filter of timm's model reads: timm's, or the authors'."""
        if self.layout.table is None:
            return dict(self.weights)
        weights = unfold_flax(self.weights) if 'kernel' in self.layout.mark else self.weights
        converted = self.layout.table.to_ours(weights)
        unknown = {name: self.weights[name] for name in converted.unknown if name in self.weights}
        return finish(converted.tensors, self.layout.family) | unknown

    def to_timm(self) -> Tensors:
        """Return the tensors by timm's names, of the file's own grid and patch size.

        Raises:
            CheckpointError: The tensors do not have the dimensions of this layout.
        """
        with refusing(self.title):
            tensors = self.for_filter()
            if self.layout.table is not None:
                return tensors
            patches = next(tensor for name, tensor in tensors.items() if re.search(PATCHES, name))
            side = patches.shape[-1] if patches.ndim == 4 else round((patches.shape[-1] / 3) ** 0.5)
            adapt = import_module(f'timm.models.{self.layout.module}').checkpoint_filter_fn
            converted: Tensors = adapt(tensors, bare_network(self.layout.module, patches.shape[0], side))
            return converted

    def sizes(self) -> dict[str, int]:
        """Read width, depth, patch, numbers of cls tokens and registers, and the side of the positions' grid, 0 without."""
        tensors = self.shapes().to_timm()
        with refusing(self.title):
            width, _, patch, _ = tensors['patch_embed.proj.weight'].shape
            positions, cls, registers = (
                tensors[name].shape[1] if name in tensors else 0 for name in ('pos_embed', 'cls_token', 'reg_token')
            )
        sides = {side * side + extra: side for side in range(1, MAX_SIDE) for extra in (1, 0)}
        depth = len({match[1] for name in tensors if (match := re.match(r'blocks\.([0-9]+)\.', name))})
        side = sides.get(positions, 0)
        return dict(width=width, depth=depth, patch=patch, cls=cls, registers=registers, side=side)

    def sentence(self) -> str:
        """Say what the file holds."""
        sizes = self.sizes()
        cls = 'with' if sizes['cls'] else 'without'
        registers = f' and {sizes["registers"]} registers' if sizes['registers'] else ''
        positions = f', positions for {sizes["side"]} × {sizes["side"]} patches' if sizes['side'] else ''
        return (
            f'{self.title}: width {sizes["width"]}, {sizes["depth"]} blocks, '
            f'patches of {sizes["patch"]} pixels{positions}, {cls} a cls token{registers}'
        )

    def config(self, path: str | Path) -> str:
        """Return the config of the teacher that takes the file."""
        model, options = self.timm_model(), ''
        if 'SigLIP' in self.family and self.layout.table is not None and not has_tanh(model):
            options = "options=dict(act_layer='gelu_tanh'), "  # as these libraries have it
        return f"dict(type='TimmTeacher', model='{model}', {options}checkpoint={str(path)!r})"

    def timm_model(self) -> str:
        """Find the model of timm whose tensors have the file's names and shapes; its family's pattern if there is none."""
        import timm

        pattern, sizes = _FAMILIES[self.family]['models'], self.sizes()
        tensors = self.shapes().to_timm()
        tensors = {name: tensors[name] for name in tensors if not re.search(r'pos_embed$|blocks\.[1-9]', name)}
        fitting = []
        for name in timm.list_models(pattern):
            if f'_patch{sizes["patch"]}_' not in name:  # the filter would resize them
                continue
            network = on_no_device(name, depth=1)  # one block, which all others equal: much faster
            given, own = adapt_to(network, tensors), network.state_dict()
            needed = {part for part in own if not part.endswith('pos_embed')}
            parts = {part for part in given if not part.startswith(('head', 'norm.', 'fc_norm'))}
            if parts <= needed <= given.keys() and all(own[part].shape == given[part].shape for part in needed):
                other_grid = network.pretrained_cfg['input_size'][1] != sizes['side'] * sizes['patch']
                fitting.append((other_grid, name))
        deep = (name for _, name in sorted(fitting) if len(on_no_device(name).blocks) == sizes['depth'])
        return next(deep, pattern)

    def shapes(self) -> Foundation:
        """Return the same without values, whose conversion costs nothing."""
        return Foundation(self.layout, {name: tensor.to('meta') for name, tensor in self.weights.items()})

    @property
    def title(self) -> str:
        """What it is, and by whose names."""
        return f'{self.family} in {self.layout.layout} layout'


def identify(weights: Mapping[str, Tensor]) -> Foundation | None:
    """Recognise a foundation model from the names of its tensors; None if it is none."""
    for layout in LAYOUTS:
        for name in sorted((name for name in weights if name.endswith(layout.mark)), key=len)[:MAX_CANDIDATES]:
            prefix = name.removesuffix(layout.mark)
            if prefix and prefix[-1] not in './':
                continue
            inner = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
            if layout.matches(inner):
                return Foundation(layout, inner)
    return None


def with_timm_names(weights: Mapping[str, Tensor], source: str | Path) -> tuple[Mapping[str, Tensor], str | None]:
    """Name the tensors of a foundation model as timm does, for our own ViT; keep all others.

    Returns:
        The tensors, and whose file it is; None if the names were kept.

    Raises:
        CheckpointError: It is of a family that our ViT cannot compute; the message says which, and what takes it.
    """
    found = identify(weights)
    if found is None or found.layout.our_vit == 'as it is':
        return weights, None
    if found.layout.our_vit is None or found.family != found.layout.family:
        raise CheckpointError(
            f'{source} holds {found.sentence()}. Our VisionTransformer cannot compute it. Use {found.config(source)}.'
        )
    return found.to_timm(), found.title


def adapt_to(network: Any, tensors: Mapping[str, Tensor]) -> Tensors:
    """Convert and resize tensors for a timm model with its own filter, if it has one."""
    module = type(network).__module__
    adapt = getattr(import_module(module), 'checkpoint_filter_fn', None)
    if adapt is None:
        return dict(tensors)
    name = network.pretrained_cfg.get('architecture', '')
    if module.endswith('.vision_transformer') and 'radio' in name:  # as timm resizes when it downloads them
        corners = name.endswith(('base_patch16_radio_v3', 'huge_patch16_radio_v3'))
        adapt = partial(adapt, interpolation='bilinear', antialias=False, align_corners=corners)
    adapted: Tensors = adapt(dict(tensors), network)
    return adapted


def bare_network(module: str, width: int, patch: int) -> Any:
    """Build a network of timm for its filter, without blocks, positions and memory: nothing is resized for it."""
    timm_module = import_module(f'timm.models.{module}')
    sizes = dict(img_size=patch, patch_size=patch, embed_dim=width, depth=0, num_heads=1, num_classes=0)
    with torch.device('meta'):
        if module == 'eva':
            return timm_module.Eva(**sizes, use_abs_pos_emb=False)
        return timm_module.VisionTransformer(**sizes, pos_embed='none')


def on_no_device(name: str, **options: Any) -> Any:
    """Create a model of timm that has shapes only."""
    import timm

    with torch.device('meta'):
        return timm.create_model(name, num_classes=0, **options)


def has_tanh(model: str) -> bool:
    """Check whether a model of timm approximates GELU by tanh."""
    from timm.layers import GELUTanh

    return '*' not in model and isinstance(on_no_device(model, depth=1).blocks[0].mlp.act, GELUTanh)


def unfold_flax(weights: Mapping[str, Tensor]) -> Tensors:
    """Bring the arrays of a Flax network into torch's dimensions and names of parameters, one tensor per block.

    Flax stores matrices as (in, out), convolutions as (h, w, in, out), attention's as (D, heads, D / heads) or (heads,
    D / heads, D), and may stack those of all blocks.
    """
    unfolded = {}
    for name, stacked in weights.items():
        parts = {name: stacked}
        if '/encoderblock/' in name:
            if len(stacked) > MAX_BLOCKS:
                raise ValueError(f'{name} is of {len(stacked)} blocks')
            parts = {name.replace('encoderblock', f'encoderblock_{index}'): part for index, part in enumerate(stacked)}
        for part, tensor in parts.items():
            head, _, kind = part.rpartition('/')
            is_out = head.endswith('/out')
            if 'Attention' in head and not (is_out and kind == 'bias'):
                tensor = tensor.flatten(0, 1) if is_out or kind == 'bias' else tensor.flatten(1)
            if kind == 'kernel':
                tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.t()
            unfolded[f'{head}/weight' if kind in ('kernel', 'scale') else part] = tensor
    return unfolded


def finish(tensors: Tensors, family: str) -> Tensors:
    """Do what a table of names cannot: divide and reshape tensors as in timm's modules."""
    finished: Tensors = {}
    gated = 'blocks.0.mlp.fc1_g.weight' in tensors
    for name, tensor in tensors.items():
        if name.startswith(SPLIT):
            query, key, value = tensor.chunk(3)
            kind = name.removeprefix(SPLIT)
            finished |= {f'attn_pool.q.{kind}': query, f'attn_pool.kv.{kind}': torch.cat([key, value])}
        elif family == 'DINOv3' and name.endswith('.qkv.bias'):  # its keys have none: a mask hides those in the file
            query, _, value = tensor.chunk(3)
            start = name.removesuffix('qkv.bias')
            finished |= {f'{start}q_bias': query, f'{start}v_bias': value}
        elif name == 'patch_embed.proj.weight' and tensor.ndim == 2:  # of flattened patches (h, w, channel)
            side = round((tensor.shape[1] / 3) ** 0.5)
            finished[name] = tensor.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
        elif name == 'pos_embed' and tensor.shape[0] > 1:  # (h, w, D)
            finished[name] = tensor.flatten(0, 1).unsqueeze(0)
        else:
            finished[name.replace('.mlp.fc1.', '.mlp.fc1_x.') if gated else name] = tensor
    return finished


def read_layout(entry: dict[str, Any]) -> Layout:
    rules = tuple(read_rules(entry['rules'])) if 'rules' in entry else None
    family, title, mark = entry['family'], entry['layout'], entry['mark']
    table = None if rules is None else Format(family, title, mark, rules, dropped=tuple(entry.get('dropped', ())))
    patterns = {name: tuple(entry.get(name, ())) for name in ('also', 'lacks')}
    module, our_vit = _FAMILIES[family]['module'], entry.get('our_vit', _FAMILIES[family].get('our_vit'))
    return Layout(family, title, module, our_vit, mark, table=table, **patterns)


_TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name('foundation.yml').read_text('utf-8'))
_FAMILIES: dict[str, dict[str, str]] = _TABLE['families']
LAYOUTS = [read_layout(entry) for entry in _TABLE['layouts']]
