"""The loss on a plane through a network's weights (Li et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_plugin.analysis.hessian import split_like
from mkd_plugin.analysis.mean_loss import MeanLoss

Direction = Mapping[str, Tensor]  # parameter's name → displacement of its shape
NORM_EPS = 1e-7
POSITIONS = ('pos_embed', 'position')  # absolute tables, and relative ones


def random_direction(parameters: Mapping[str, Tensor], *, seed: int) -> Direction:
    """Standard normal, then filter-normalised."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(w.shape, generator=generator).to(w) for name, w in parameters.items()}
    return filter_normalise(drawn, parameters)


def direction_of(vector_N: Tensor, parameters: Mapping[str, Tensor]) -> Direction:
    """A flat vector, such as an eigenvector of the Hessian, filter-normalised."""
    pieces = split_like(vector_N, list(parameters.values()))
    return filter_normalise(dict(zip(parameters, pieces, strict=True)), parameters)


def filter_normalise(direction: Direction, parameters: Mapping[str, Tensor]) -> Direction:
    """‖w‖ / (‖b‖ + 1e-7) · b with norms over dim 0: as long as the weights. One-dimensional parameters and positions stay.

    Args:
        direction: b, of any length.
        parameters: w.
    """
    normalised = {}
    for name, w in parameters.items():
        b, w = direction[name], w.detach()
        if w.dim() <= 1 or any(part in name for part in POSITIONS):
            normalised[name] = torch.zeros_like(w)
        else:
            normalised[name] = w.norm(dim=0, keepdim=True) / (b.norm(dim=0, keepdim=True) + NORM_EPS) * b
    return normalised


@contextmanager
def displaced(parameters: Mapping[str, Tensor], steps: list[tuple[float, Direction]]) -> Iterator[None]:
    """Weights plus a sum of steps inside; afterwards the very weights that there were."""
    before = {name: w.detach().clone() for name, w in parameters.items()}
    try:
        with torch.no_grad():
            for name, w in parameters.items():
                for length, direction in steps:
                    w.add_(direction[name], alpha=length)
        yield
    finally:
        with torch.no_grad():
            for name, w in parameters.items():
                w.copy_(before[name])


def loss_at(loss: MeanLoss, first: Direction, second: Direction, at: tuple[float, float]) -> float:
    """The mean loss at weights + at[0] · first + at[1] · second; infinite where it overflows."""
    with displaced(loss.parameters, [(at[0], first), (at[1], second)]):
        return loss.value()


@dataclass(frozen=True)
class LossLandscape:
    """A surface.

    Attributes:
        steps_S: Coordinates along either direction.
        losses_SS: Mean loss; rows go along the first direction, columns along the second.
    """

    steps_S: Tensor
    losses_SS: Tensor


def loss_landscape(
    loss: MeanLoss,
    first: Direction,
    second: Direction,
    *,
    size: int = 21,
    radius: float = 1.0,
    on_point: Callable[[], None] | None = None,
) -> LossLandscape:
    """The mean loss on a square grid around the weights, which are what they were afterwards.

    Args:
        loss: The loss.
        first: A filter-normalised direction.
        second: Another.
        size: Points along a direction; odd, so that the middle is the weights themselves.
        radius: The grid is [−radius, radius]².
        on_point: Called after every point, for a progress bar.

    Raises:
        ValueError: An even size, or a radius that is not positive.
    """
    if size < 1 or size % 2 == 0 or radius <= 0:
        raise ValueError(f'size={size}, radius={radius}: use an odd number of points and a positive radius.')
    steps_S = torch.linspace(-radius, radius, size, dtype=torch.float64)
    steps_S[size // 2] = 0
    losses_SS = torch.empty(size, size, dtype=torch.float64)
    for i, x in enumerate(steps_S.tolist()):
        for j, y in enumerate(steps_S.tolist()):
            losses_SS[i, j] = loss_at(loss, first, second, (x, y))
            if on_point is not None:
                on_point()
    return LossLandscape(steps_S, losses_SS)
