"""Accumulators and input checks shared by all measurements.

Accumulators stream over batches: the result equals that of all images at once, and memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

FLAVOURS = ('cl-vs-mim', 'dbot')


def check_finite(values: Tensor, name: str) -> None:
    """Raise ValueError if a value is NaN or infinite. ``name`` tells where the values come from."""
    finite = torch.isfinite(values)
    if not finite.all():
        raise ValueError(
            f'{name}: {int((~finite).sum())} of {values.numel()} values are NaN or infinite. Compute in float32 instead of '
            'half precision. If that does not help, the checkpoint is broken at this place.'
        )


def patches_of(tokens_BND: Tensor, grid: tuple[int, int], num_prefix: int, name: str) -> Tensor:
    """Drop the prefix tokens: (B, L, D), in at least float32. Raises ValueError if the tokens do not fit the grid.

    ``name`` tells where the tokens come from.
    """
    if tokens_BND.dim() != 3 or tokens_BND.shape[1] != num_prefix + prod(grid):
        raise ValueError(
            f'{name}: tokens must have the shape (B, {num_prefix} + {grid[0]} · {grid[1]}, D), got '
            f'{tuple(tokens_BND.shape)}. Give the grid and the number of prefix tokens of this network at this image size.'
        )
    check_finite(tokens_BND, name)
    return widen(tokens_BND[:, num_prefix:])


def widen(values: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class ImageMean:
    """Mean over images of a value per image, summed in float64. Messages contain ``name``."""

    def __init__(self, *, name: str = 'values') -> None:
        self.name = name
        self.images = 0
        self._sum: Tensor | None = None

    def update(self, values_B: Tensor, /) -> None:
        """Add the values of a batch, (B, …)."""
        total = values_B.sum(dim=0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self.images += len(values_B)

    def result(self) -> Tensor:
        """Return the mean in float64. Raises ValueError if there was no image."""
        if self._sum is None or not self.images:
            raise ValueError(f'{self.name}: no image was measured, so there is no mean. Call update first.')
        return self._sum / self.images


class CrossScatter:
    """Σ (x − x̄)(y − ȳ)ᵀ over all examples so far, where the means are those of all examples, (C, E) in float64.

    Exact for any split into batches: batches are centred on their own means and merged as in Chan, Golub and LeVeque
    (1983), which avoids cancellation. For y = x it is the covariance times (n − 1).
    """

    def __init__(self) -> None:
        self.examples = 0
        self.scatter_CE: Tensor | None = None
        self._means: tuple[Tensor, Tensor] | None = None

    def update(self, x_NC: Tensor, y_NE: Tensor) -> None:
        """Add a batch of paired examples."""
        new = len(x_NC)
        if not new:
            return
        x_NC, y_NE = x_NC.double(), y_NE.double()
        means = x_NC.mean(dim=0), y_NE.mean(dim=0)
        scatter_CE = (x_NC - means[0]).T @ (y_NE - means[1])
        before, self.examples = self.examples, self.examples + new
        if self.scatter_CE is None or self._means is None:
            self.scatter_CE, self._means = scatter_CE, means
            return
        step_C, step_E = means[0] - self._means[0], means[1] - self._means[1]
        self.scatter_CE += scatter_CE.addr_(step_C, step_E, alpha=before * new / self.examples)
        for mean, step in zip(self._means, (step_C, step_E), strict=True):
            mean += step * (new / self.examples)


class PerLayer:
    """One accumulator per layer, made from its name when it is first seen. Pass it to ``run_watched``.

    An accumulator has ``update(batch)``, and ``result()``, which may be called at any time.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make
        self.layers: dict[str, Any] = {}

    def __call__(self, name: str, batch: Tensor) -> None:
        if name not in self.layers:
            self.layers[name] = self._make(name)
        self.layers[name].update(batch)

    def results(self) -> dict[str, Any]:
        """Layer → result, in order of appearance."""
        return {name: layer.result() for name, layer in self.layers.items()}
