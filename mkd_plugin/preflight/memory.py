"""The memory that a training step needs, computed from its shapes, and the memory that there is."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.masking import BlockMasking
from mkd_plugin.models.protocols import Progress
from mkd_plugin.preflight.checks import without_checkpoints
from mkd_plugin.preflight.plan import Memory, memory_of

GIB = 2**30


class Needed(NamedTuple):
    """Bytes that a training step of one process needs."""

    kept: Memory  #: Between steps; the gradients are not
    step: int  #: Most that activations and gradients hold at once

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.kept) - self.kept.gradients + self.step


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


class AnyValue(TorchDispatchMode):
    """Answers every reading of a value, which a tensor of :class:`FakeTensorMode` does not have: with 1, or False."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, unless it reads a value."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0 if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def memory_needed(cfg: Config, images: int) -> Needed:
    """Compute the memory of a pre-training step of ``images`` images, without allocating it or reading a file.

    The step runs on tensors without values. What libraries, kernels and data loading take is not included.
    """
    options = {'data_preprocessor': cfg.get('data_preprocessor'), **without_checkpoints(cfg.model.to_dict())}
    half = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), AnyValue():
        warnings.simplefilter('ignore')  # mmengine and torch ask for addresses of tensors that have none
        model = MODELS.build(ConfigDict(options)).train()
        assert isinstance(model, MaskedDistiller)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        model.begin_training(Progress(0, 2))
        batch = torch.zeros(images, model.backbone.in_channels, *model.backbone.image_hw)
        hidden = torch.arange(model.masking.num_patches) >= model.masking.num_visible
        drawn = isinstance(model.masking, BlockMasking)  # by the host, from values
        samples = [DataSample(mask=hidden) for _ in range(images)] if drawn else None
        kept = memory_of(model, optimizer)
        with LiveMemory([*model.parameters(), *model.buffers(), batch]) as live, torch.autocast('cpu', enabled=half):
            model.parse_losses(model.loss(batch, samples))[0].backward()
    return Needed(kept, live.peak)


def memory_free() -> int:
    """Return the bytes that a process can still allocate on the device: of the GPU, of the machine, or of its container."""
    if get_device() == 'cuda':
        return int(torch.cuda.mem_get_info()[0])
    lines = Path('/proc/meminfo').read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
    limit, used = (Path('/sys/fs/cgroup', name) for name in ('memory.max', 'memory.current'))
    if limit.is_file() and (bound := limit.read_text().strip()).isdecimal():
        free = min(free, int(bound) - int(used.read_text()))
    return free
