"""Layer-wise learning rates, frozen blocks, and a table of the optimiser's parameter groups."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

from mkd_plugin.compat.paramwise import check_paramwise
from mkd_plugin.engine.run_utils import bare_model
from mkd_plugin.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS

BACKBONE = 'backbone.'
# no weight decay whatever their shape: positions and prefix tokens, by the last part of their name
UNDECAYED = (
    'cls_token', 'dist_token', 'register_tokens', 'mask_token', 'pos_embed', 'relative_position_bias_table',
)  # fmt: skip


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FewGroupsConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with one group for all parameters of equal rate and decay.

    mmengine makes a group per parameter, 253 for dBOT's ViT-B; schedulers set the rate of each on the host, and a fused
    optimiser launches its kernels for each.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimiser and its wrapper."""
        check_paramwise(self.paramwise_cfg, getattr(model, 'module', model))
        wrapper: OptimWrapper = super().__call__(model)
        return wrapper

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', is_dcn_module: Any = None
    ) -> None:
        """Append the groups of a module and its children to ``params``; join them once the whole model is done."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        joined: dict[str, dict[str, Any]] = {}
        for group in params:
            options = {name: value for name, value in sorted(group.items()) if name != 'params'}
            joined.setdefault(repr(options), dict(options, params=[]))['params'] += group['params']
        params[:] = joined.values()


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Gives layer i of the backbone the learning rate lr · decay^(depth + 1 − i).

    Layer 0 holds patch embedding, prefix tokens and positions, layer k is block k (from 1), and layer depth + 1 the
    backbone's last norm and everything outside the backbone, as in BEiT, MAE and their successors. Weight decay is 0 for
    every 1-D parameter (biases, norms, layer scales), for positions, prefix tokens and tables of relative positions. Frozen
    parameters are left out. Each layer has at most two groups, which carry its name as ``layer``; the groups are logged.

    Args:
        optim_wrapper_cfg: As for mmengine's constructor; the optimiser's ``lr`` and ``weight_decay`` are required.
        paramwise_cfg: ``dict(layer_decay_rate=…)``, in (0, 1], and nothing else.

    Raises:
        ValueError: ``paramwise_cfg`` has other options or none, the rate is outside (0, 1], or ``lr`` or ``weight_decay`` is
            missing; on the call: the model's backbone does not know the layers of its parameters.
    """

    def _validate_cfg(self) -> None:
        given = dict(self.paramwise_cfg)
        if set(given) != {'layer_decay_rate'}:
            raise ValueError(
                f'paramwise_cfg={given}: LayerDecayConstructor takes layer_decay_rate and nothing else; which parameters '
                'have no weight decay is part of its rule. To drop the options of a base config: '
                'paramwise_cfg=dict(_delete_=True, layer_decay_rate=…).'
            )
        rate = given['layer_decay_rate']
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate={rate!r}: it must lie in (0, 1]; 1 gives every layer the same rate.')
        missing = [name for name in ('lr', 'weight_decay') if self.optimizer_cfg.get(name) is None]
        if missing:
            raise ValueError(f'optimizer={dict(self.optimizer_cfg)}: it needs {missing}, which differ by layer.')

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
        """Append the groups of a whole model to ``params``, layer by layer. The other arguments are mmengine's, unused."""
        layer_of = layer_lookup(getattr(module, 'backbone', None), owner=type(module).__name__)
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
                    layer='embedding' if layer == 0 else 'heads, norms' if layer == layers - 1 else f'block {layer}',
                )
            groups[layer, decayed]['params'].append(parameter)
        params += [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def layer_lookup(backbone: Any, *, owner: str) -> Callable[..., tuple[int, int]]:
    """The backbone's method that maps a parameter's name to (layer, number of layers)."""
    layer_of: Callable[..., tuple[int, int]] | None = getattr(backbone, 'get_layer_depth', None)
    if layer_of is None:
        raise ValueError(
            f'{owner} has the backbone {type(backbone).__name__}, which has no get_layer_depth: the layers of its parameters '
            'are not known. Use a ViT of mkd_plugin or mmpretrain, or leave optim_wrapper.constructor and FreezeHook out.'
        )
    return layer_of


@HOOKS.register_module()
class FreezeHook(Hook):
    """Freezes the embeddings and the first blocks of ``model.backbone``: no gradient, no stochastic depth.

    In distributed training the config must set ``find_unused_parameters=True``, because DDP registers all parameters
    earlier.

    Args:
        blocks: Number of blocks; patch embedding, prefix tokens and positions are frozen with them.

    Raises:
        ValueError: ``blocks`` is not positive or exceeds the backbone's depth, or the backbone does not know the layers of
            its parameters.
    """

    def __init__(self, *, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f'blocks={blocks}: it must be at least 1. To freeze nothing, leave the hook out.')
        self.blocks = blocks

    def before_run(self, runner: Runner) -> None:
        """Freeze the parameters; optimisers skip those without a gradient, weight decay included."""
        self.freeze(bare_model(runner))

    def freeze(self, model: Any) -> None:
        """Freeze the parameters of a model. Raises ValueError if it has fewer blocks, or no list of them."""
        layer_of = layer_lookup(model.backbone, owner=type(model).__name__)
        if not hasattr(model.backbone, 'layers'):
            raise ValueError(
                f'FreezeHook: {type(model.backbone).__name__} has no list of blocks. Use a ViT, or leave it out.'
            )
        for name, parameter in model.backbone.named_parameters():
            layer, layers = layer_of(name)
            if self.blocks > layers - 2:
                raise ValueError(f'blocks={self.blocks}: the backbone has {layers - 2}. Use from 1 to {layers - 2}.')
            if layer <= self.blocks:
                parameter.requires_grad_(False)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the blocks in evaluation mode: loops switch the whole model to training, also after a validation."""
        for block in bare_model(runner).backbone.layers[: self.blocks]:
            block.eval()


def parameter_groups(optimizer: Optimizer) -> list[tuple[str, int, int, float, float]]:
    """Summarise an optimiser's groups: layer, number of tensors, of values in them, learning rate and weight decay.

    mmengine makes one group per tensor; groups that agree in layer, rate and decay are joined, in their order. The layer is
    empty without layer-wise decay.
    """
    kinds: dict[tuple[str, float, float], list[int]] = {}
    for group in optimizer.param_groups:
        numbers = kinds.setdefault((group.get('layer', ''), group['lr'], group.get('weight_decay', 0.0)), [])
        numbers += [parameter.numel() for parameter in group['params']]
    return [(layer, len(n), sum(n), rate, decay) for (layer, rate, decay), n in kinds.items()]


def group_table(optimizer: Optimizer) -> Table:
    """Table of the parameter groups, with a column for the layer if there is layer-wise decay."""
    kinds = parameter_groups(optimizer)
    layered = any(layer for layer, *_ in kinds)
    columns = ['tensors', 'parameters', 'rate', 'weight decay']
    table = Table(*(['layer'] if layered else []), *columns, title='parameter groups')
    for layer, tensors, numbers, rate, decay in kinds:
        cells = [str(tensors), f'{numbers:,}', f'{rate:.4g}', f'{decay:.4g}']
        table.add_row(*([layer] if layered else []), *cells)
    return table
