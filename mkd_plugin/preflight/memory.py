"""The memory that a training step needs, computed from its shapes, and the memory that there is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mkd_plugin.models.masking import BlockMasking
from mkd_plugin.models.protocols import Progress
from mkd_plugin.preflight.checks import without_checkpoints
from mkd_plugin.preflight.plan import Memory, memory_of

GIB = 2**30


class AnyValue(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers every reading of a value, which a tensor of :class:`FakeTensorMode` does not have: with 1, or False."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, unless it reads a value."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0 if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def memory_needed(cfg: Config, images: int) -> tuple[Memory, int]:
    """Compute the bytes of a pre-training step of ``images`` images, without allocating them or reading a file.

    Returns:
        What weights, gradients, moments and teachers need, and what the forward pass saves for the backward pass. What
        kernels and libraries take is not included.
    """
    options = {'data_preprocessor': cfg.get('data_preprocessor'), **without_checkpoints(cfg.model.to_dict())}
    half = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    any_value = AnyValue()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), any_value:
        warnings.simplefilter('ignore')  # mmengine and torch ask for addresses of tensors that have none
        model: Any = MODELS.build(ConfigDict(options)).train()
        model.begin_training(Progress(0, 2))
        batch = torch.zeros(images, model.backbone.in_channels, *model.backbone.image_hw)
        hidden = torch.arange(model.masking.num_patches) >= model.masking.num_visible
        drawn = isinstance(model.masking, BlockMasking)  # by the host, from values
        samples = [DataSample(mask=hidden) for _ in range(images)] if drawn else None
        with torch.autocast('cpu', enabled=half), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = model.loss(batch, samples)  # keeps what is saved
        for weight in (*model.parameters(), *model.buffers()):
            saved.pop(weight.untyped_storage()._cdata, None)
        del losses
        return memory_of(model, build_optim_wrapper(model, cfg.optim_wrapper).optimizer), sum(saved.values())


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
