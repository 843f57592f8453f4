"""Sections of gpu_benchmark.py that time whole training steps: ours, and the official code's in turn."""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from gpu_benchmark_contestants import Contestant, Official, Ours
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from timing import pairwise, timed
from workload import build_model, count_gflops, read_config

from mkd_plugin.engine import AttentionHook

CONFIG = 'dbot/dbot_vit-base-p16_8xb512-2x800e_in1k'
Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What a section needs to know."""

    device: torch.device
    tiny: bool  #: Tiny networks, to test the benchmark
    batch_size: int
    folder: Path  #: For temporary files
    official: Path | None  #: A checkout of the official code
    end: float  #: When to start no further row, on the clock of time.monotonic

    @classmethod
    def of(cls, args: argparse.Namespace, folder: Path, end: float) -> Setup:
        """Read the command line. Raises ValueError without a GPU, unless the benchmark itself is tested."""
        MMLogger.get_current_instance().setLevel('WARNING')
        if not args.tiny and not torch.cuda.is_available():
            raise ValueError('torch sees no GPU. To test the benchmark itself on a CPU, add --tiny.')
        device = torch.device('cpu' if args.tiny else 'cuda')
        return cls(device, args.tiny, 4 if args.tiny else args.batch_size, folder, args.official, end)

    def config(self, name: str = CONFIG) -> Config:
        """Read a dBOT's config, of a tiny network if the benchmark itself is tested."""
        cfg = copy.deepcopy(cached_config(name))
        if self.tiny:
            cfg.model.backbone.arch = dict(width=16, depth=2, num_heads=2)
            cfg.model.objectives.feature.head.update(depth=1, width=16, num_heads=2)
        return cfg

    def run(self, rows: Mapping[str, Callable[[], Row]]) -> Iterator[Row]:
        """Give the result of each row, or why it has none; what it left on the device is freed.

        An error after which the device does not work is raised, too.
        """
        for name, row in rows.items():
            if time.monotonic() > self.end:
                yield dict(row=name, skipped='no time left')
                continue
            try:
                result = row()
            except Exception as error:
                result = dict(error=f'{type(error).__name__}: {error}'[:300])
                if not device_works():
                    yield dict(row=name, **result)
                    raise
            yield dict(row=name, **result)
            free()


cached_config = cache(read_config)


def device_works() -> bool:
    """Whether the device still computes: after a kernel's error it does not, after one that cuBLAS reports it does."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def free() -> None:
    """Return memory to the device, and forget compiled code and what Official sets."""
    torch._dynamo.reset()
    torch.backends.cudnn.benchmark = False
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def product_peak(device: torch.device) -> float:
    """FLOP/s of the product of two matrices of 8192² random numbers in bfloat16, the best of five; of 64² on a CPU."""
    side, dtype = (64, torch.float32) if device.type == 'cpu' else (8192, torch.bfloat16)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    result = left @ right
    repeats = 1 if device.type == 'cpu' else 10
    runs = [timed(lambda: [torch.mm(left, right, out=result) for _ in range(repeats)], device) for _ in range(5)]
    return repeats * 2 * side**3 / min(run.seconds for run in runs)


def measure(contestant: Contestant, gflop: float) -> Row:
    """Time steps without waiting between them, the median of three rounds of about 1 s after three steps of warm-up."""
    device = contestant.device
    began = time.monotonic()
    for _ in range(3):
        loss = contestant.step()
    warm_up = time.monotonic() - began
    count = max(1, min(10, int(1.0 / contestant.time_step().seconds))) if device.type == 'cuda' else 1
    rounds = [timed(lambda: [contestant.step() for _ in range(count)], device).seconds / count for _ in range(3)]
    seconds = median(rounds)
    if not torch.isfinite(loss):
        raise ValueError(f'The loss is {loss.item()}.')
    rate = contestant.batch_size / seconds
    share = 100e9 * gflop * rate / product_peak(device)
    found = dict(images_per_s=rate, ms_a_step=1e3 * seconds, spread_ms=1e3 * (max(rounds) - min(rounds)))
    found |= dict(tflop_per_s=gflop * rate / 1e3, percent_of_peak=share, warm_up_s=warm_up)
    if device.type == 'cuda':
        found['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
    return found


@dataclass(frozen=True)
class Setting:
    """What can be switched in a step; the defaults are the config's own."""

    dtype: str | None = (
        None  #: 'float32', or 'bfloat16' for mmengine's autocast; None for the config's optimiser wrapper
    )
    joined: bool = False  #: Two parameter groups instead of one per parameter
    fused: bool = False  #: Fused AdamW
    crops: bool = True  #: Crops from the host, resized on the device, instead of whole images that are there already
    compiled: str | None = None  #: 'blocks' or 'loss'
    waits: bool = False  #: Whether every step reads the norm of the gradient
    attention: bool = False  #: Kernels of attention chosen by timing
    precision: Mapping[str, str] | None = None  #: Types of residual streams and teachers
    recompute: bool | str = False  #: Activation checkpointing of student and decoder

    def build(self, setup: Setup) -> Ours:
        """Build model, optimiser and batch."""
        cfg = setup.config()
        if self.dtype is not None:
            own = {key: cfg.optim_wrapper[key] for key in ('paramwise_cfg', 'clip_grad')}
            mixed = dict(type='AmpOptimWrapper', dtype=self.dtype, loss_scale=1.0)
            own |= dict(type='OptimWrapper') if self.dtype == 'float32' else mixed
            own['constructor'] = f'{"mkd_plugin.FewGroups" if self.joined else "DefaultOptimWrapper"}Constructor'
            cfg.optim_wrapper = {**own, 'optimizer': {**cfg.optim_wrapper.optimizer, 'fused': self.fused}}
        for part in (cfg.model.backbone, cfg.model.objectives.feature.head):
            part.activation_checkpointing = self.recompute
        cfg.model.precision = None if self.precision is None else dict(self.precision)
        options: Any = dict(crops=self.crops, compiled=self.compiled, waits=self.waits)
        ours = Ours(cfg, setup.batch_size, setup.device, **options)
        if self.attention:
            AttentionHook().before_train(RunnerDouble(ours))
        if self.precision is not None and setup.tiny:  # a CPU's optimiser wrapper has no autocast
            ours.step = torch.autocast('cpu', torch.bfloat16)(ours.step)  # type: ignore[method-assign]
        return ours


class RunnerDouble:
    """What AttentionHook reads of a runner."""

    def __init__(self, ours: Ours) -> None:
        self.model, self.optim_wrapper = ours.model, ours.optimizer
        self.message_hub, self.logger = MessageHub('attention'), MMLogger.get_current_instance()
        self.train_dataloader = SimpleNamespace(batch_size=ours.batch_size)


HALF = dict(residual='bfloat16', teacher='bfloat16')
ALL = Setting(compiled='blocks', attention=True, precision=dict(HALF, teacher='fp8'))
# One improvement after another, each on top of those before it, but for gpu_benchmark_report.BASES.
LADDER = {
    'float32, a group per parameter, AdamW, whole images': Setting('float32', crops=False, waits=True),
    'bfloat16 autocast': Setting('bfloat16', crops=False, waits=True),
    'two parameter groups': Setting('bfloat16', joined=True, crops=False, waits=True),
    'fused AdamW': Setting('bfloat16', joined=True, fused=True, crops=False, waits=True),
    'gradient norm not read': Setting('bfloat16', joined=True, fused=True, crops=False),
    "the config's optimiser wrapper": Setting(crops=False),
    'crops resized on the device, as in training': Setting(),
    'compiled blocks': Setting(compiled='blocks'),
    'kernels of attention chosen by timing': Setting(compiled='blocks', attention=True),
    'residual streams in bfloat16': Setting(compiled='blocks', attention=True, precision=HALF),
    'teacher in float8': ALL,
    'selective recomputation, for memory': replace(ALL, recompute='selective'),
    'compiled loss instead, without these options': Setting(compiled='loss'),
}


def step(setup: Setup) -> Iterator[Row]:
    """Time steps of dBOT with one improvement after another."""
    gflop = count_gflops(setup.config()).total

    def row(setting: Setting) -> Row:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return measure(setting.build(setup), gflop)

    yield from setup.run({name: partial(row, setting) for name, setting in LADDER.items()})


def build_official(setup: Setup, dtype: torch.dtype = torch.float16) -> Official:
    """Build the official step in the sizes of our config."""
    assert setup.official is not None
    cfg = setup.config()
    head = cfg.model.objectives.feature.head
    return Official(setup.official, build_model(cfg).backbone, head, setup.batch_size, setup.device, dtype)


def official(setup: Setup) -> Iterator[Row]:
    """Time our steps and the official code's in turn."""
    if setup.official is None:
        yield dict(row='official', skipped='give --official FOLDER')
        return
    gflop = count_gflops(setup.config()).total

    def against(dtype: torch.dtype, setting: Setting) -> Row:
        contestants = [setting.build(setup), build_official(setup, dtype)]
        for contestant in contestants:
            for _ in range(3):
                contestant.step()
        turns = [1, -1] * (1 if setup.tiny else 5)  # who is first, so that a slower device slows both
        rounds = [[contestant.time_step().seconds for contestant in contestants[::turn]][::turn] for turn in turns]
        ours, theirs = zip(*rounds, strict=True)
        found = {f'time_{name}': value for name, value in pairwise(ours, theirs).items()}
        rates = [setup.batch_size / median(times) for times in (ours, theirs)]
        shares = dict(our_percent_of_peak=100e9 * gflop * rates[0] / product_peak(setup.device))
        return dict(our_images_per_s=rates[0], official_images_per_s=rates[1], **found, **shares)

    yield from setup.run({
        'official in float16, as its loop': partial(against, torch.float16, Setting(crops=False)),
        'official in bfloat16': partial(against, torch.bfloat16, Setting(crops=False)),
        'official in float16, our blocks compiled': partial(
            against, torch.float16, Setting(crops=False, compiled='blocks')),
    })  # fmt: skip
