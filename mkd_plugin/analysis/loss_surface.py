"""The loss over given images as a function of the weights: its value, Hessian products, and a plane through the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Direction = Mapping[str, Tensor]  # name of a parameter → displacement of the same shape
NORM_EPS = 1e-7
POSITIONS = ('pos_embed', 'position')  # absolute tables, and relative ones


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; restore the mode of every module afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


class MeanLoss:
    """Mean loss over all images of all batches, in evaluation mode. Every image has the same weight.

    ``batches`` is a list or DataLoader, which is iterated repeatedly; an iterator raises ValueError. ``loss`` maps (model,
    batch) to the loss of every image, (B,), for example a cross entropy with ``reduction='none'``.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]) -> None:
        if iter(batches) is batches:
            raise ValueError('batches is an iterator, which is empty after one pass; give a list or a DataLoader.')
        self.model, self.batches, self.loss = model, batches, loss
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def mean_of(self, of_sum: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over images of a linear function of the loss: the loss, its gradient, or a product with its Hessian.

        ``of_sum`` maps the summed loss of a batch to its value. Raises ValueError without images, or for a wrong loss.
        """
        total, images = None, 0
        # flash attention has no second derivative
        with evaluation_mode(self.model), sdpa_kernel(SDPBackend.MATH):
            for batch in self.batches:
                loss_B = self.loss(self.model, batch)
                if loss_B.dim() != 1:
                    raise ValueError(
                        f'The loss must be one number per image, (B,), got the shape {tuple(loss_B.shape)}. Use '
                        "reduction='none' and average over everything else."
                    )
                share = of_sum(loss_B.sum())
                total = share if total is None else total + share
                images += len(loss_B)
        if total is None or not images:
            raise ValueError('There is no batch to compute a loss on.')
        return total / images

    @torch.no_grad()
    def value(self) -> float:
        return float(self.mean_of(lambda loss: loss.double()))


class SymmetricOperator(Protocol):
    """A symmetric matrix given by its products."""

    like_N: Tensor  #: A vector with the type and device of the vectors it is multiplied with

    def product(self, v_N: Tensor) -> Tensor:
        """Multiply by a vector, (N,)."""
        ...


class Hessian:
    """Hessian of a mean loss with respect to all trainable parameters, flattened in the order of the model.

    A product takes one forward and two backward passes over all batches, keeps the graph of one batch at a time, and ends
    with a call of ``on_product``. Raises ValueError if no parameter is trainable.
    """

    def __init__(self, loss: MeanLoss, *, on_product: Callable[[], None] = lambda: None) -> None:
        if not loss.parameters:
            raise ValueError(
                'The model has no parameter with requires_grad, so its loss has no Hessian. Unfreeze some parameters.'
            )
        self.loss, self.on_product = loss, on_product
        self.parameters = list(loss.parameters.values())
        self.like_N = torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    def product(self, v_N: Tensor) -> Tensor:
        """Return H v, (N,). Raises ValueError if the loss or a derivative is not finite."""
        directions = split_like(v_N, self.parameters)
        with torch.enable_grad():
            result = self.loss.mean_of(lambda total: self._product_of(total, directions))
        if not torch.isfinite(result).all():
            raise ValueError(
                'A product with the Hessian is not finite: the loss or its derivatives overflow at these weights. Look for '
                'NaN in the activations, or compute in float64.'
            )
        self.on_product()
        return result

    def _product_of(self, total: Tensor, directions: Sequence[Tensor]) -> Tensor:
        # materialised, because a parameter may be missing from this loss or from its gradient
        gradients = torch.autograd.grad(total, self.parameters, create_graph=True, materialize_grads=True)
        along = torch.stack([(gradient * v).sum() for gradient, v in zip(gradients, directions, strict=True)]).sum()
        if not along.requires_grad:  # the loss is linear
            return torch.zeros_like(self.like_N)
        products = torch.autograd.grad(along, self.parameters, materialize_grads=True)
        return torch.cat([product.detach().flatten() for product in products])


def split_like(v_N: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Split a flat vector into tensors of the shapes of the parameters."""
    parts = torch.split_with_sizes(v_N, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


def random_direction(parameters: Mapping[str, Tensor], *, seed: int) -> Direction:
    """Draw a standard normal direction and filter-normalise it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(w.shape, generator=generator).to(w) for name, w in parameters.items()}
    return filter_normalise(drawn, parameters)


def direction_of(vector_N: Tensor, parameters: Mapping[str, Tensor]) -> Direction:
    """Filter-normalise a flat vector, such as an eigenvector of the Hessian."""
    pieces = split_like(vector_N, list(parameters.values()))
    return filter_normalise(dict(zip(parameters, pieces, strict=True)), parameters)


def filter_normalise(direction: Direction, parameters: Mapping[str, Tensor]) -> Direction:
    """Scale a direction b to the length of the weights w: ‖w‖ / (‖b‖ + 1e-7) · b, with norms over dim 0 (Li et al. 2018).

    One-dimensional parameters and position embeddings get the direction zero.
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
    """Add steps to the weights; restore the exact weights afterwards."""
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
    """Mean loss at weights + at[0] · first + at[1] · second; infinite where it overflows."""
    with displaced(loss.parameters, [(at[0], first), (at[1], second)]):
        return loss.value()


@dataclass(frozen=True)
class LossLandscape:
    """The loss on a square grid around the weights."""

    steps_S: Tensor  #: coordinates along each direction
    losses_SS: Tensor  #: rows follow the first direction, columns the second


def loss_landscape(
    loss: MeanLoss,
    first: Direction,
    second: Direction,
    *,
    size: int = 21,
    radius: float = 1.0,
    on_point: Callable[[], None] = lambda: None,
) -> LossLandscape:
    """Compute the mean loss on the grid [−radius, radius]² around the weights (Li et al. 2018). The weights are restored.

    The directions are filter-normalised. ``size`` is the number of points along each; it is odd, so that the central point
    is the weights themselves. ``on_point`` is called after every point. Raises ValueError if ``size`` is even, or
    ``radius`` not positive.
    """
    if size < 1 or size % 2 == 0 or radius <= 0:
        raise ValueError(f'size={size}, radius={radius}: use an odd number of points and a positive radius.')
    steps_S = torch.linspace(-radius, radius, size, dtype=torch.float64)
    steps_S[size // 2] = 0
    losses_SS = torch.empty(size, size, dtype=torch.float64)
    for i, x in enumerate(steps_S.tolist()):
        for j, y in enumerate(steps_S.tolist()):
            losses_SS[i, j] = loss_at(loss, first, second, (x, y))
            on_point()
    return LossLandscape(steps_S, losses_SS)
