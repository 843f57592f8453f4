"""What the benchmarks run: a model from a config of any host, the FLOPs of its step, and the memory that is alive in it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mmengine.hub
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import mkd_plugin


def read_config(name: str) -> Config:
    """A config by any of its names; see the module's docstring.

    Raises:
        ValueError: There is no such config.
    """
    if '::' in name:
        return mmengine.hub.get_config(name)
    if Path(name).is_file():
        return Config.fromfile(name)
    method, _, row = name.partition(':')
    return mkd_plugin.get_ablation(method, row) if row else mkd_plugin.get_config(name)


def without_files(cfg: Any) -> Any:
    """The same config with random weights wherever it names a checkpoint: a step takes as long with any weights."""
    if isinstance(cfg, (list, tuple)):
        return [without_files(value) for value in cfg]
    if not isinstance(cfg, dict):
        return cfg
    kept = {key: without_files(value) for key, value in cfg.items() if key not in ('checkpoint', 'init_cfg')}
    return {**kept, 'seed': 0} if cfg.get('checkpoint') and 'init_cfg' not in cfg else kept


def build_model(cfg: Config) -> nn.Module:
    """The model as the runner would build it, in training mode."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        options = {'data_preprocessor': cfg.get('data_preprocessor'), **cfg.model}
        return MODELS.build(without_files(options)).train()


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of the images its backbone takes."""
    side = getattr(model.backbone, 'img_size', 224)
    height, width = (side, side) if isinstance(side, int) else side
    return getattr(model.backbone, 'in_channels', 3), height, width


def count_gflops(cfg: Config, batch_size: int = 2) -> float:
    """GFLOP of one image in a step, counted on tensors without values; a fused attention kernel would hide its own."""
    model = build_model(cfg).to('meta')
    images = torch.empty(batch_size, *image_shape(model), device='meta')
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, _ = model.parse_losses(model.loss(images, None))
        loss.backward()
    return counter.get_total_flops() / batch_size / 1e9


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that are alive at once while this is active, at most; without what kernels allocate inside.

    Args:
        known: Tensors that were there before and are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            return
        self.live.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size
