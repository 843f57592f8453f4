"""What an optimiser's groups are, as a table."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

from mkd_plugin.engine.teacher_updates import bare_model
from mkd_plugin.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS


class GroupKind(NamedTuple):
    """All groups of one layer, rate and weight decay.

    Attributes:
        layer: What layer-wise rate decay calls them; empty without it.
        tensors: How many parameters there are.
        numbers: How many numbers those hold.
        rate: Learning rate.
        decay: Weight decay.
    """

    layer: str
    tensors: int
    numbers: int
    rate: float
    decay: float


def parameter_groups(optimizer: Optimizer) -> list[GroupKind]:
    """The kinds of groups in their order; mmengine makes a group of every tensor."""
    kinds: dict[tuple[str, float, float], list[int]] = {}
    for group in optimizer.param_groups:
        numbers = kinds.setdefault((group.get('layer', ''), group['lr'], group.get('weight_decay', 0.0)), [])
        numbers += [parameter.numel() for parameter in group['params']]
    return [GroupKind(layer, len(n), sum(n), rate, decay) for (layer, rate, decay), n in kinds.items()]


def group_table(optimizer: Optimizer) -> Table:
    """The kinds of groups as a table, with a column for the layer if there are layers."""
    kinds = parameter_groups(optimizer)
    columns: list[tuple[str, Any]] = [
        ('layer', lambda kind: kind.layer),
        ('tensors', lambda kind: str(kind.tensors)),
        ('parameters', lambda kind: f'{kind.numbers:,}'),
        ('rate', lambda kind: f'{kind.rate:.4g}'),
        ('weight decay', lambda kind: f'{kind.decay:.4g}'),
    ]
    shown = columns if any(kind.layer for kind in kinds) else columns[1:]
    table = Table(*(title for title, _ in shown), title='parameter groups')
    for kind in kinds:
        table.add_row(*(cell(kind) for _, cell in shown))
    return table


BACKBONE = 'backbone.'
# what is learned for a place or a prefix token, whatever its shape; tables by their last name, so in every block
UNDECAYED = (
    'cls_token', 'dist_token', 'register_tokens', 'mask_token', 'pos_embed', 'relative_position_bias_table',
)  # fmt: skip


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Gives layer i of the backbone the rate lr · decay^(depth + 1 − i): i = 0 for patch embedding, prefix tokens and
    positions, k for block k (1-based), depth + 1 for the backbone's last norm and for everything outside of it.

    The rule of BEiT, MAE and the papers after them. Weight decay is 0 for every 1-D parameter (biases, norms, layer scales),
    for positions, prefix tokens and tables of relative positions. Frozen parameters are left out. There are at most two
    groups for a layer, each with its ``layer``; the logger gets them as a table.

    Args:
        optim_wrapper_cfg: As mmengine's constructor has it; the optimiser's ``lr`` and ``weight_decay`` must be given.
        paramwise_cfg: ``dict(layer_decay_rate=…)``, in (0, 1], and nothing else.

    Raises:
        ValueError: Another or no option in ``paramwise_cfg``; a rate outside (0, 1]; no ``lr`` or ``weight_decay``; when it
            is called, a model whose backbone does not tell the layer of a parameter.
    """

    def _validate_cfg(self) -> None:
        given = dict(self.paramwise_cfg)
        if set(given) != {'layer_decay_rate'}:
            raise ValueError(
                f'paramwise_cfg={given}: LayerDecayConstructor takes layer_decay_rate and nothing else, for what has no weight '
                'decay is part of the rule. To drop what a base config says: paramwise_cfg=dict(_delete_=True, '
                'layer_decay_rate=…).'
            )
        rate = given['layer_decay_rate']
        if not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate={rate}: it must lie in (0, 1]; 1 is the same rate for every layer.')
        missing = [name for name in ('lr', 'weight_decay') if self.optimizer_cfg.get(name) is None]
        if missing:
            raise ValueError(f'optimizer={dict(self.optimizer_cfg)}: it needs {missing}, for they differ by layer.')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimiser and its wrapper, and log the groups."""
        wrapper: OptimWrapper = super().__call__(model)
        text = io.StringIO()
        Console(file=text, width=100).print(group_table(wrapper.optimizer))
        print_log(f'layer-wise rate decay\n{text.getvalue()}', logger='current', level=logging.INFO)
        return wrapper

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', is_dcn_module: Any = None
    ) -> None:
        """Add the groups of a whole model to ``params``, layer by layer; the last two arguments are mmengine's, unused."""
        layer_of = layers_of(module)
        rate = self.paramwise_cfg['layer_decay_rate']
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer, layers = layer_of(name, prefix=BACKBONE)
            decayed = parameter.ndim > 1 and not (name.startswith(BACKBONE) and name.split('.')[-1] in UNDECAYED)
            if (layer, decayed) not in groups:
                groups[layer, decayed] = dict(
                    params=[],
                    lr=self.base_lr * rate ** (layers - 1 - layer),
                    weight_decay=self.base_wd if decayed else 0.0,
                    layer=name_of(layer, layers),
                )
            groups[layer, decayed]['params'].append(parameter)
        params += [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def layers_of(model: nn.Module) -> Callable[..., tuple[int, int]]:
    """The method of the backbone that says the layer of a parameter.

    Raises:
        ValueError: There is no backbone, or it has no such method.
    """
    backbone = getattr(model, 'backbone', None)
    layer_of: Callable[..., tuple[int, int]] | None = getattr(backbone, 'get_layer_depth', None)
    if layer_of is None:
        raise ValueError(
            f'{type(model).__name__} has the backbone {type(backbone).__name__}, which has no get_layer_depth: the layers of '
            'its parameters are not known. Use a ViT of mkd_plugin or mmpretrain, or leave optim_wrapper.constructor out.'
        )
    return layer_of


def name_of(layer: int, layers: int) -> str:
    """What a layer is called in tables."""
    return 'embedding' if layer == 0 else 'heads, norms' if layer == layers - 1 else f'block {layer}'


@HOOKS.register_module()
class FreezeHook(Hook):
    """Keeps the embeddings and the first blocks of ``model.backbone`` as they were loaded: no gradient, no stochastic depth.

    In a distributed run the config must say ``find_unused_parameters=True``, for DDP was told of all parameters before.

    Args:
        blocks: How many blocks; the patch embedding, prefix tokens and positions are frozen with them.

    Raises:
        ValueError: ``blocks`` is not positive, or more than the backbone has; the backbone does not say which layer a
            parameter belongs to.
    """

    def __init__(self, *, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f'blocks={blocks}: it must be at least 1. To freeze nothing, leave the hook out.')
        self.blocks = blocks

    def before_run(self, runner: Runner) -> None:
        """Freeze; the optimiser leaves out what has no gradient, weight decay included."""
        backbone = bare_model(runner).backbone
        if not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(
                f'{type(backbone).__name__} has no get_layer_depth, so its blocks are not known. Use a ViT.'
            )
        for name, parameter in backbone.named_parameters():
            layer, layers = backbone.get_layer_depth(name)
            if self.blocks > layers - 2:
                raise ValueError(f'blocks={self.blocks}: the backbone has {layers - 2}. Use from 1 to {layers - 2}.')
            if layer <= self.blocks:
                parameter.requires_grad_(False)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Loops switch the whole model to training mode, and again after every validation."""
        for block in bare_model(runner).backbone.layers[: self.blocks]:
            block.eval()
