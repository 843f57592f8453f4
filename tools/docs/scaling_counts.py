"""Count a step of dBOT and MAE for docs/scaling.md, and measure what a CPU can measure."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mkd_plugin.engine.shard_files import begin_shards
from mkd_plugin.models.protocols import Progress
from mkd_plugin.preflight.checks import without_checkpoints
from mkd_plugin.preflight.memory import AnyValue
from mkd_plugin.utils.configs import get_config

BASE = 'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k'


@dataclass(frozen=True)
class Counted:
    """A model's step, counted for one image."""

    flops: float  #: Of matrix products, forward and backward, teachers included
    launches: int  #: Operations that are no views, forward and backward
    trained: int  #: Parameters that are trained
    teachers: int  #: Weights of the teachers


class Launches(TorchDispatchMode):
    """Counts operations that compute."""

    count = 0
    free = {
        'view', 'expand', 'permute', 'transpose', 't', 'select', 'slice', 'split', 'detach', 'alias', 'unbind', '_unsafe_view',
        'split_with_sizes', 'lift_fresh', 'unsqueeze', 'squeeze', 'as_strided', 'empty', 'empty_like', 'empty_strided',
        'new_empty', 'new_empty_strided',
    }  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        self.count += func.overloadpacket.__name__ not in self.free
        return func(*args, **(kwargs or {}))


def step(model: Any, images: torch.Tensor, *, half: bool) -> None:
    """Forward, in bf16 as recipes run it or in float32, and backward."""
    with torch.autocast('cpu', torch.bfloat16, enabled=half):
        loss, _ = model.parse_losses(model.loss(images))
    loss.backward()


@cache
def narrow(depth: int) -> tuple[Any, torch.Tensor]:
    """A dBOT of as many blocks, but narrow and on small images, which launches the same operations; and an image."""
    cfg = get_config(BASE)
    cfg.model.backbone.update(arch=dict(width=16, depth=depth, num_heads=1), img_size=64)
    cfg.model.objectives.feature.head.update(width=16, num_heads=1)
    model = MODELS.build(ConfigDict({'data_preprocessor': cfg.data_preprocessor, **cfg.model})).train()
    model.begin_training(Progress(0, 1))
    return model, torch.zeros(1, 3, 64, 64)


def launches_of(depth: int, *, half: bool = True) -> int:
    """Count the operations of a step."""
    model, images = narrow(depth)
    model.zero_grad()
    with Launches() as launches:
        step(model, images, half=half)
    return launches.count


def count(config: str, arch: str) -> Counted:
    """Count a config's step on tensors without values, with a student of another size."""
    init_default_scope('mmpretrain')
    if not MMLogger.check_instance_created('scaling'):
        MMLogger.get_instance('scaling', log_level='WARNING')
    cfg = get_config(config)
    cfg.model.backbone.arch = dict(width=1536, depth=40, num_heads=24) if arch == 'g' else arch
    if 'boot' in cfg.model.teachers:
        cfg.model.teachers.boot.pop('start_depth', None)  # from the second stage on, teachers are whole
    options = {'data_preprocessor': cfg.data_preprocessor, **without_checkpoints(cfg.model.to_dict())}
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), AnyValue():
        warnings.simplefilter('ignore')
        model = MODELS.build(ConfigDict(options)).train()
        model.begin_training(Progress(0, 1))
        images = torch.zeros(2, 3, *model.backbone.image_hw)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:  # a fused kernel hides its own
            model.parse_losses(model.loss(images))[0].backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(b.numel() for teacher in model.teachers.values() for b in teacher.buffers())
    return Counted(flops.get_total_flops() / 2, launches_of(model.backbone.arch.depth), trained, frozen)


def measure() -> None:
    """Measure `launch` and `copying` on this machine, on one thread."""
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    (model, images), times = narrow(12), []
    for _ in range(40):
        model.zero_grad()
        start = time.perf_counter()
        step(model, images, half=False)  # a CPU's bf16 takes detours
        times.append(time.perf_counter() - start)
    print(f'launch: {min(times) / launches_of(12, half=False) * 1e6:.2f} µs')
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    tensors, times = {str(number): torch.ones(2**24) for number in range(16)}, []
    for _ in range(5):
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            finish = begin_shards(Path(folder, 'x'), tensors, {})
            times.append(time.perf_counter() - start)
            finish()
    print(f'copying: {2**30 / median(times) / 1e9:.2f} GB/s; {[round(t, 2) for t in times]} s for a GiB')
