"""Accumulators: what is measured batch by batch equals what all images at once give, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class Accumulator(Protocol):
    """Takes batches, gives a result at any time."""

    def update(self, batch: Tensor, /) -> None: ...

    def result(self) -> Any: ...


A = TypeVar('A', bound=Accumulator)


class ImageMean:
    """Mean over images of something that each image has its own of; sums are float64.

    Args:
        name: What it is a mean of, for messages.
    """

    def __init__(self, *, name: str = 'values') -> None:
        self.name = name
        self.images = 0
        self._sum: Tensor | None = None

    def update(self, values_B: Tensor, /) -> None:
        """Take the values of a batch, (B, …)."""
        total = values_B.sum(dim=0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self.images += len(values_B)

    def result(self) -> Tensor:
        """The mean, float64, of the shape of one image's values.

        Raises:
            ValueError: There was no image.
        """
        if self._sum is None or not self.images:
            raise ValueError(
                f'{self.name}: no image was measured, so there is no mean. Call update with a batch first.'
            )
        return self._sum / self.images


class CrossScatter:
    """Σ (x − x̄)(y − ȳ)ᵀ over all examples so far, with means over all of them: exact for any split into batches.

    Batches are centred on their own means, and merged as Chan, Golub and LeVeque (1983) do: nothing large is subtracted
    from something large. With itself, it is the covariance times (n − 1).

    Attributes:
        examples: n.
        scatter_CE: The sum, float64; None before the first batch.
    """

    def __init__(self) -> None:
        self.examples = 0
        self.scatter_CE: Tensor | None = None
        self._mean_C: Tensor | None = None
        self._mean_E: Tensor | None = None

    def update(self, x_NC: Tensor, y_NE: Tensor) -> None:
        """Take a batch of paired examples."""
        new = len(x_NC)
        if not new:
            return
        x_NC, y_NE = x_NC.double(), y_NE.double()
        mean_C, mean_E = x_NC.mean(dim=0), y_NE.mean(dim=0)
        scatter_CE = (x_NC - mean_C).T @ (y_NE - mean_E)
        if self.scatter_CE is None or self._mean_C is None or self._mean_E is None:
            self.scatter_CE, self._mean_C, self._mean_E, self.examples = scatter_CE, mean_C, mean_E, new
            return
        step_C, step_E = mean_C - self._mean_C, mean_E - self._mean_E
        both = self.examples + new
        self.scatter_CE += scatter_CE
        self.scatter_CE.addr_(step_C, step_E, alpha=self.examples * new / both)
        self._mean_C += step_C * (new / both)
        self._mean_E += step_E * (new / both)
        self.examples = both


class PerLayer(Generic[A]):
    """One accumulator a layer, made when the layer is first seen; what ``capture.run_watched`` calls.

    Args:
        make: Layer's name → accumulator.
    """

    def __init__(self, make: Callable[[str], A]) -> None:
        self._make = make
        self.layers: dict[str, A] = {}

    def __call__(self, name: str, batch: Tensor) -> None:
        """Take a batch of one layer."""
        if name not in self.layers:
            self.layers[name] = self._make(name)
        self.layers[name].update(batch)

    def results(self) -> dict[str, Any]:
        """Layer → result, in the order in which the layers were first seen."""
        return {name: layer.result() for name, layer in self.layers.items()}
