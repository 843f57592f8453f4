"""Sections of gpu_benchmark.py about the device: what it can do at best, where a step's time goes, and how many images fit."""

from __future__ import annotations

import gc
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gpu_benchmark_contestants import Contestant
from gpu_benchmark_steps import Row, Setting, Setup, build_official, product_peak
from timing import timed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler
from workload import LiveMemory

BACKENDS = {
    'flash': SDPBackend.FLASH_ATTENTION,
    'memory-efficient': SDPBackend.EFFICIENT_ATTENTION,
    'cuDNN': SDPBackend.CUDNN_ATTENTION,
    'math': SDPBackend.MATH,
}
# Networks of dBOT's ViT-B: tokens, width, heads.
NETWORKS = {'student': (50, 768, 12), 'teacher': (197, 768, 12), 'decoder': (197, 512, 16)}
NO_KERNEL = re.compile('No available kernel|No viable backend')
ATTENTION = re.compile(r'flash|fmha|attention|sdpa', re.IGNORECASE)
PRODUCT = re.compile(r'gemm|nvjet|cutlass|xmma|cublas|addmm|aten::mm|aten::bmm', re.IGNORECASE)
FUSED = re.compile(r'triton_(poi|per|red)_')  # Inductor's, named after the operations around it
WAITS = re.compile(r'cuda(Stream|Event)Synchronize')  # the profiler itself waits for the device


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call among many without waiting, the median of five rounds of about 50 ms; of one on a CPU."""
    run()
    if device.type == 'cpu':
        return timed(run, device).seconds
    count = max(1, min(200, int(0.05 / timed(run, device).seconds)))
    return median(timed(lambda: [run() for _ in range(count)], device).seconds / count for _ in range(5))


def ceilings(setup: Setup) -> Iterator[Row]:
    """Measure products, copies, and this model's products and attention."""
    device, dtype = setup.device, torch.float32 if setup.device.type == 'cpu' else torch.bfloat16
    size = 2**20 if setup.tiny else 2**31

    def copy() -> Row:
        source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
        source.random_()
        return dict(gb_per_s=2 * size / seconds_of(lambda: target.copy_(source), device) / 1e9)

    def upload() -> Row:
        source = torch.empty(size // 8, dtype=torch.uint8, pin_memory=device.type == 'cuda').random_()
        target = torch.empty_like(source, device=device)
        return dict(gb_per_s=size / 8 / seconds_of(lambda: target.copy_(source, non_blocking=True), device) / 1e9)

    def product(tokens: int, inner: int, outer: int) -> Row:
        x = torch.randn(setup.batch_size * tokens, inner, device=device, dtype=dtype, requires_grad=True)
        weight = torch.randn(outer, inner, device=device, dtype=dtype, requires_grad=True)
        grad = torch.randn(len(x), outer, device=device, dtype=dtype)
        flop = 2 * len(x) * inner * outer
        forward = seconds_of(lambda: F.linear(x, weight), device)
        both = seconds_of(lambda: torch.autograd.grad(F.linear(x, weight), (x, weight), grad), device)
        return dict(forward_tflop_per_s=flop / forward / 1e12, tflop_per_s=3 * flop / both / 1e12)

    def attend(tokens: int, width: int, heads: int, backend: SDPBackend) -> Row:
        shape = (setup.batch_size, heads, tokens, width // heads)
        qkv = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
        grad = torch.randn(shape, device=device, dtype=dtype)
        with sdpa_kernel(backend):
            forward = seconds_of(lambda: F.scaled_dot_product_attention(*qkv), device)
            both = seconds_of(lambda: torch.autograd.grad(F.scaled_dot_product_attention(*qkv), qkv, grad), device)
        flop = 4 * setup.batch_size * tokens**2 * width
        return dict(forward_ms=1e3 * forward, both_ms=1e3 * both, forward_tflop_per_s=flop / forward / 1e12)

    rows: dict[str, Callable[[], Row]] = {
        'product of 8192²': lambda: dict(tflop_per_s=product_peak(device) / 1e12),
        'copy on the device, read and written': copy,
        'copy from pinned memory': upload,
    }
    one_head = {name: (tokens, width // heads, 1) for name, (tokens, width, heads) in NETWORKS.items()}
    networks = one_head if setup.tiny else NETWORKS
    for name, (tokens, width, _) in networks.items():
        for what, inner, outer in (('qkv', 1, 3), ('projection', 1, 1), ('MLP in', 1, 4), ('MLP out', 4, 1)):
            rows[f'{name}: {what}'] = partial(product, tokens, inner * width, outer * width)
    for name, sizes in networks.items():
        for kind, backend in BACKENDS.items():
            rows[f'{name}: attention, {kind}'] = partial(if_possible, partial(attend, *sizes, backend))
    yield from setup.run(rows)


def if_possible(row: Callable[[], Row]) -> Row:
    """Run a row that uses a kernel of attention, which this device may lack."""
    try:
        return row()
    except RuntimeError as error:
        if not NO_KERNEL.search(str(error)):
            raise
        return dict(skipped='no kernel for this device')


def profile(setup: Setup) -> Iterator[Row]:
    """Profile steps: the longest kernels, what is neither product nor attention, launches, and waits of the host."""
    settings = {'as in training': Setting(), 'compiled blocks': Setting(compiled='blocks')}
    yield from setup.run({name: partial(profile_steps, setting, setup) for name, setting in settings.items()})


def profile_steps(setting: Setting, setup: Setup, steps: int = 3) -> Row:
    """Profile a few steps after some of warm-up."""
    contestant, cuda = setting.build(setup), setup.device.type == 'cuda'
    for _ in range(4):
        contestant.step()
    alone = timed(lambda: [contestant.step() for _ in range(steps)], setup.device).seconds
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        for _ in range(steps):
            contestant.step()
    if cuda:
        path = setup.folder / 'trace.json'
        found.export_chrome_trace(str(path))
        kernels, waits = read_trace(path)
    else:
        averages = found.key_averages()
        kernels, waits = {event.key: (event.self_cpu_time_total, event.count) for event in averages}, 0
    return {**summary_of(kernels, steps, alone), 'waits_a_step': waits / steps}


def read_trace(path: Path) -> tuple[dict[str, tuple[float, int]], int]:
    """Read a trace: name of each kernel or copy → its microseconds and calls; and how often the host waited."""
    events = json.loads(path.read_text())['traceEvents']
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get('cat') in ('kernel', 'gpu_memcpy', 'gpu_memset'):
            kernels[event['name']].append(event.get('dur', 0.0))
    waits = sum(WAITS.search(event['name']) is not None for event in events if event.get('cat') == 'cuda_runtime')
    return {name: (sum(times), len(times)) for name, times in kernels.items()}, waits


def summary_of(kernels: dict[str, tuple[float, int]], steps: int, alone: float) -> Row:
    """Sum up kernels, given in microseconds and calls; ``alone`` is the steps' time in seconds without the profiler."""
    kinds = dict(products=0.0, attention=0.0, other=0.0)
    for name, (time_us, _) in kernels.items():
        kind = 'attention' if ATTENTION.search(name) else 'products' if PRODUCT.search(name) else 'other'
        kinds['other' if FUSED.match(name) else kind] += time_us
    total = sum(kinds.values())
    longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:25]
    top = [(name[:100], time_us / 1e3 / steps, count / steps) for name, (time_us, count) in longest]
    return {
        'ms_a_step': 1e3 * alone / steps,
        'kernels_ms_a_step': total / 1e3 / steps,
        **{f'percent_{kind}': 100 * time_us / max(total, 1e-9) for kind, time_us in kinds.items()},
        'launches_a_step': sum(count for _, count in kernels.values()) / steps,
        'top': top,
    }


def bytes_of(contestant: Contestant) -> tuple[int, int]:
    """Bytes that are allocated between steps, and most within the second of two; on a CPU without what was there."""
    contestant.step()
    if contestant.device.type != 'cuda':
        with LiveMemory([]) as live:
            contestant.step()
        return 0, live.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contestant.step()
    torch.cuda.synchronize()
    return before, torch.cuda.max_memory_allocated()


def fits(contestant: Contestant, limit: float, batch_size: int) -> bool:
    """Whether steps of this batch run within ``limit`` bytes."""
    try:
        contestant.give(batch_size)
        if bytes_of(contestant)[1] <= limit:
            return True
    except torch.OutOfMemoryError:
        pass
    contestant.optimizer.zero_grad()
    contestant.give(1)
    gc.collect()
    if contestant.device.type == 'cuda':
        torch.cuda.empty_cache()
    return False


def largest_batch(fits: Callable[[int], bool], start: int, unit: int, end: float = float('inf')) -> tuple[int, bool]:
    """Find by doubling and bisection the largest multiple of ``unit`` that fits.

    Returns:
        The batch, and whether there was time to find it: otherwise it is what fitted.
    """
    least, most = 0, start
    while time.monotonic() < end and fits(most):
        least, most = most, 2 * most
    while most - least > unit and time.monotonic() < end:
        middle = max(least + 1, (least + most) // 2 // unit * unit)
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least, most - least <= unit


def memory(setup: Setup) -> Iterator[Row]:
    """Measure the memory of a step, and find the largest batch of what is not compiled for one size."""

    def row(build: Callable[[], Contestant], search: bool) -> Row:
        contestant = build()
        before, peak = bytes_of(contestant)
        found: dict[str, Any] = dict(batch=setup.batch_size, peak_gib=peak / 2**30, between_steps_gib=before / 2**30)
        found['mb_an_image'] = (peak - before) / setup.batch_size / 1e6
        if search:
            limit = 3 * peak if setup.tiny else float('inf')
            batch = largest_batch(
                partial(fits, contestant, limit), setup.batch_size, 2 if setup.tiny else 64, setup.end
            )
            found['largest_batch'], found['found'] = batch
        return found

    rows = {'ours': partial(row, lambda: Setting(crops=False).build(setup), True)}
    if setup.official is not None:
        rows['official, float16'] = partial(row, lambda: build_official(setup), True)
    selective = Setting(crops=False, recompute='selective')
    rows['ours, selective recomputation'] = partial(row, lambda: selective.build(setup), False)
    rows['ours, blocks compiled'] = partial(row, lambda: Setting(crops=False, compiled='blocks').build(setup), False)
    yield from setup.run(rows)
