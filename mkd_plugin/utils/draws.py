"""Random numbers that depend on the seed and on what is drawn, not on the process that draws it.

A generator's numbers depend on those drawn before, so that processes with other shares of a batch draw others. Here each
number is a hash of its own place: a process computes those of its rows of the global batch, and of the order of a data set the
places that it needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UInts = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, SplitMix64's increment
ROUNDS = 8  # of the Feistel network; four suffice for large sets, small ones need more


@dataclass
class TrainingStep:
    """What the draws of a training step depend on; without a seed they come from torch's generator."""

    seed: int | None = None  #: Of this step, the same on every process
    rank: int = 0
    ranks: int = 1  #: Row j of this process's batch is row rank + j · ranks of the global batch


STEP = TrainingStep()


def start_step(seed: int | None, *, rank: int = 0, ranks: int = 1) -> None:
    """Let :func:`draw_uniform` draw for a training step from here on, or from torch's generator again (None)."""
    STEP.seed, STEP.rank, STEP.ranks = seed, rank, ranks


def derive_seed(*key: int | str) -> int:
    """Hash ``key`` to a seed in [0, 2^63). Unlike sums such as seed + epoch, different keys do not collide."""
    plain = [part if isinstance(part, str) else int(part) for part in key]  # samplers may give numpy integers
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), 'big') >> 1


@torch.library.custom_op('mkd_plugin::draw_uniform', mutates_args=())
def draw_uniform(name: str, size: Sequence[int], rows: int, device: torch.device) -> Tensor:
    """Draw uniform numbers in [0, 1), float32 of this size.

    In a training step under ``ExactResumeHook`` they are functions of the run's seed, the iteration, ``name`` and the row in
    the global batch. The host computes them and copies them without waiting for the device: 0.5 ms for 512 masks of 196
    patches, beside the step. Otherwise they come from torch's generator of the device.

    Args:
        name: What is drawn: draws of one step need different names.
        size: Size of the result.
        rows: Dimension whose entries are the images of this process's batch.
        device: Where the result is needed.
    """
    if STEP.seed is None:
        return torch.rand(list(size), dtype=torch.float32, device=device)
    images, columns = size[rows], int(np.prod(size)) // max(size[rows], 1)
    row_R = STEP.rank + STEP.ranks * np.arange(images, dtype=np.uint64)
    row_R = scramble(np.uint64(derive_seed(name, STEP.seed)) + row_R * GOLDEN)
    bits_RC = scramble(row_R[:, None] + np.arange(1, columns + 1, dtype=np.uint64) * GOLDEN)
    bits_RC >>= np.uint64(40)
    drawn = torch.from_numpy(bits_RC.astype(np.float32)).mul_(2.0**-24)  # float32 holds 24 bits exactly
    others = [length for dimension, length in enumerate(size) if dimension != rows]
    return to_device(drawn.view(images, *others).movedim(0, rows).contiguous(), device)


@draw_uniform.register_fake
def _(name: str, size: Sequence[int], rows: int, device: torch.device) -> Tensor:
    return torch.empty(list(size), dtype=torch.float32, device=device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else values.to(device)


def permute(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Look up places 0 … size − 1 in a random permutation of ``size`` numbers, chosen by ``key``.

    Nothing is stored: a Feistel network permutes 2^(2h) ≥ size numbers, and is applied again to those that leave the range
    (Black and Rogaway, 2002).
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = scramble(np.uint64(key) + np.arange(ROUNDS, dtype=np.uint64) * GOLDEN)
    found = places.astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key_of_round in keys:
            left, right = right, left ^ (scramble(right + key_of_round) & mask)
        found[outside] = left << half | right
        outside = found >= size
    return found.astype(np.int64)


def scramble(values: UInts) -> UInts:
    """Hash each number in place (the output function of SplitMix64; Steele, Lea and Flood, 2014)."""
    shifted = np.empty_like(values)  # allocating memory takes longer than the arithmetic
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= np.right_shift(values, np.uint64(shift), out=shifted)
        values *= np.uint64(factor)
    values ^= np.right_shift(values, np.uint64(31), out=shifted)
    return values
