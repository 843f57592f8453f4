"""Random numbers that depend on the seed and on what is drawn, not on the process that draws it.

Each number is a hash of its own place: a process computes those of its rows of the global batch, or of the places in the order
of a data set that it needs. A generator's numbers would depend on those drawn before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, SplitMix64's increment
ROUNDS = 8  # of the Feistel network: four serve large sets, small ones need more
STEP = SimpleNamespace(seed=None, rank=0, ranks=1)  # the present training step; a seed of None between steps


def start_step(seed: int | None, *, rank: int = 0, ranks: int = 1) -> None:
    """Let :func:`draw_uniform` draw for a step: row j of this batch is row rank + j · ranks of the global one. None ends it."""
    STEP.seed, STEP.rank, STEP.ranks = seed, rank, ranks


def derive_seed(*key: int | str) -> int:
    """Hash ``key`` to a seed in [0, 2^63). Unlike sums such as seed + epoch, different keys do not collide."""
    plain = [part if isinstance(part, str) else int(part) for part in key]  # samplers may give numpy integers
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), 'big') >> 1


@torch.library.custom_op('mkd_plugin::draw_uniform', mutates_args=())
def draw_uniform(name: str, size: Sequence[int], rows: int, device: torch.device) -> Tensor:
    """Draw uniform numbers in [0, 1), float32 of this size; dimension ``rows`` counts the images of this process.

    In a training step under ``ExactResumeHook`` they are functions of seed, iteration, row in the global batch and ``name``,
    which differs between the draws of a step. The host computes them, and nothing waits for the device. Otherwise they come
    from torch's generator.
    """
    if STEP.seed is None:
        return torch.rand(list(size), dtype=torch.float32, device=device)
    others = [length for dimension, length in enumerate(size) if dimension != rows]
    row_R = (STEP.rank + STEP.ranks * np.arange(size[rows], dtype=np.uint64)) * GOLDEN
    row_R = scramble(row_R + np.uint64(derive_seed(name, STEP.seed)))
    bits_RC = scramble(row_R[:, None] + np.arange(1, 1 + int(np.prod(others)), dtype=np.uint64) * GOLDEN)
    bits_RC >>= np.uint64(40)
    drawn = torch.from_numpy(bits_RC.astype(np.float32)).mul_(2.0**-24)  # float32 holds 24 bits exactly
    return to_device(drawn.view(size[rows], *others).movedim(0, rows).contiguous(), device)


@draw_uniform.register_fake
def _(name: str, size: Sequence[int], rows: int, device: torch.device) -> Tensor:
    return torch.empty(list(size), dtype=torch.float32, device=device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else values.to(device)


def permute(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Look up places in the random permutation of 0 … size − 1 that ``key`` chooses, which is stored nowhere.

    A Feistel network permutes 2^(2h) ≥ size numbers, and is applied again to those outside (Black and Rogaway, 2002).
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = scramble(np.uint64(key) + np.arange(ROUNDS, dtype=np.uint64) * GOLDEN)
    found, outside = places.astype(np.uint64), np.full(places.shape, True)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key_of_round in keys:
            left, right = right, left ^ (scramble(right + key_of_round) & mask)
        found[outside] = left << half | right
        outside = found >= size
    return found.astype(np.int64)


def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash each number in place by the output function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    shifted = np.empty_like(values)  # allocating memory takes longer than the arithmetic
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        values ^= np.right_shift(values, np.uint64(shift), out=shifted)
        values *= np.uint64(factor)
    return values
