"""What changes in a tensor when it changes its format: nothing, its leading axes, its sides, or three become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['FLAT', 'SAME', 'TRANSPOSED', 'Form', 'join_qkv', 'split_qkv']


class Form(NamedTuple):
    """How a foreign tensor is shaped, as a pair of functions that undo each other."""

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


def unflatten(tensor: Tensor) -> Tensor:
    """A token (D,) or a table of positions (N, D) → (1, 1, D) or (1, N, D); other shapes are kept."""
    return tensor.view((1,) * (3 - tensor.ndim) + tensor.shape) if tensor.ndim < 3 else tensor


def flatten(tensor: Tensor) -> Tensor:
    """The inverse of :func:`unflatten`: a token loses both leading axes, a table the first."""
    return tensor[0, 0] if tensor.shape[1] == 1 else tensor[0]


def transpose(tensor: Tensor) -> Tensor:
    """A matrix that stands on the right of a product ↔ one of a linear layer."""
    return tensor.t()


SAME = Form(lambda tensor: tensor, lambda tensor: tensor)
FLAT = Form(unflatten, flatten)
TRANSPOSED = Form(transpose, transpose)


def join_qkv(query: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
    """Weights or biases of queries, keys and values, one behind the other; zeros if there are none of keys."""
    return torch.cat([query, torch.zeros_like(query) if key is None else key, value])


def split_qkv(joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of :func:`join_qkv`."""
    query, key, value = joined.chunk(3)
    return query, key, value
