"""What the benchmarks run: a model from a config of any host, the FLOPs of its step, and the memory that is alive in it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mmengine.hub
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import mkd_plugin
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.protocols import Progress


def read_config(name: str) -> Config:
    """A config by any of its names; see step_time.py.

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
        model = MODELS.build(without_files(options)).train()
    if isinstance(model, MaskedDistiller):
        model.begin_training(Progress(0, 1))  # nothing updates its teachers here, which it would refuse
    return model


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of the images its backbone takes."""
    side = getattr(model.backbone, 'img_size', 224)
    height, width = (side, side) if isinstance(side, int) else side
    return getattr(model.backbone, 'in_channels', 3), height, width


def batch_of(cfg: Config, images: Tensor) -> tuple[Tensor | list[Tensor], list[DataSample] | None]:
    """What the config's loader gives beside the images: a second view (here the same one) and masks, if its pipeline makes
    them, as BEiT's does."""
    pipeline = cfg.get('train_dataloader', {}).get('dataset', {}).get('pipeline', [])
    steps = {str(step['type']).split('.')[-1]: step for step in pipeline}
    inputs = [images, images] if 'RandomResizedCropAndInterpolationWithTwoPic' in steps else images
    if 'BEiTMaskGenerator' not in steps:
        return inputs, None
    np.random.seed(0)  # the transform draws from the global generator
    generator = TRANSFORMS.build(steps['BEiTMaskGenerator'])
    samples = [DataSample() for _ in range(len(images))]
    for sample in samples:
        sample.set_field(torch.as_tensor(generator({})['mask']), 'mask')
    return inputs, samples


class Gflops(NamedTuple):
    """GFLOP of one image in a step.

    Attributes:
        total: Forward and backward, teachers included.
        student: What is not in a teacher's forward pass: the student, heads, losses (which form the relations of both).
    """

    total: float
    student: float


def count_gflops(cfg: Config, batch_size: int = 2) -> Gflops:
    """Counted on tensors without values, unless masks come with the data, by whose values the hosts pick tokens; a fused
    attention kernel would hide its own."""
    model = build_model(cfg)
    inputs, samples = batch_of(cfg, torch.zeros(batch_size, *image_shape(model)))
    if samples is None:
        model, inputs = model.to('meta'), tree_map(lambda images: images.to('meta'), inputs)
    of_teachers = 0
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):

        def start(*_: Any) -> None:
            nonlocal of_teachers
            of_teachers -= counter.get_total_flops()

        def stop(*_: Any) -> None:
            nonlocal of_teachers
            of_teachers += counter.get_total_flops()

        ours, the_hosts = getattr(model, 'teachers', {}).values(), getattr(model, 'target_generator', None)
        for teacher in filter(None, [*ours, the_hosts]):
            teacher.register_forward_pre_hook(start)
            teacher.register_forward_hook(stop)
        loss, _ = model.parse_losses(model.loss(inputs, samples))
        loss.backward()
    total = counter.get_total_flops()
    return Gflops(total / batch_size / 1e9, (total - of_teachers) / batch_size / 1e9)


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
