"""Time contestants in turn, so that a machine that slows down slows all of them, and compare them pair by pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, NamedTuple

import torch

PRODUCT = (4096, 768, 3072)  # rows, inner, columns: the first layer of ViT-B's perceptron for 20 images
QUIET = 0.95  # share of its usual cores that a process must have had for its time to count


class Timing(NamedTuple):
    """How long something took, and how many cores this process had meanwhile, on average."""

    seconds: float
    cores: float


@dataclass
class Round:
    """One step of each contestant.

    Attributes:
        timings: Their steps, in the contestants' order.
        product_rate: FLOP/s of the matrix product right afterwards.
        quiet: Cores this process had over the most it ever had, 1 if nobody else wanted them.
    """

    timings: list[Timing]
    product_rate: float
    quiet: float = 1.0


def timed(run: Callable[[], object], device: torch.device) -> Timing:
    """How long it takes until everything that ``run`` started is done."""
    wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    wait()
    start, processor = time.perf_counter(), time.process_time()
    run()
    wait()
    seconds = time.perf_counter() - start
    return Timing(seconds, (time.process_time() - processor) / seconds)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product of ViT-B's size."""
    rows, inner, columns = PRODUCT
    left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((rows, inner), (inner, columns)))
    result = left @ right
    repeats = 500 if device.type == 'cuda' else 10
    timing = timed(lambda: [torch.mm(left, right, out=result) for _ in range(repeats)], device)
    return repeats * 2 * rows * inner * columns / timing.seconds


def run_rounds(contestants: Sequence[Any], pairs: int, device: torch.device, dtype: torch.dtype) -> list[Round]:
    """Let each step once in every round, the order reversed every other time, until ``pairs`` rounds were quiet.

    On a CPU that others use as well, rounds in which they took the cores say nothing about a step: after at most twice as
    many rounds, the quietest are kept.
    """
    rounds: list[Round] = []
    for index in range(2 * pairs):
        turn = 1 if index % 2 == 0 else -1
        timings = [contestant.time_step() for contestant in contestants[::turn]][::turn]
        rounds.append(Round(timings, product_rate(device, dtype)))
        most = [
            max(timing.cores for timing in column) for column in zip(*(past.timings for past in rounds), strict=True)
        ]
        for past in rounds:
            past.quiet = min(timing.cores / usual for timing, usual in zip(past.timings, most, strict=True))
        print(
            f'round {index + 1}:',
            *(f'{timing.seconds:.2f} s on {timing.cores:.2f} cores' for timing in timings),
            sep='  ',
        )
        undisturbed = len(rounds) if device.type == 'cuda' else sum(past.quiet > QUIET for past in rounds)
        if undisturbed >= pairs:
            break
    return rounds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = quantiles(values, n=4, method='inclusive') if len(values) > 1 else [values[0]] * 3
    return low, middle, high


def pairwise(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios pair by pair."""
    ratios = [mine / other for mine, other in zip(first, second, strict=True)]
    return dict(zip(('low', 'median', 'high'), quartiles(ratios), strict=True))
