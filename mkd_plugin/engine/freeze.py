"""Fine-tuning with the first blocks frozen."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.stages import bare_model
from mkd_plugin.registry import HOOKS

__all__ = ['FreezeHook']


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
