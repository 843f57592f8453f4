"""Products with the Hessian of a loss, without the Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mkd_plugin.analysis.mean_loss import MeanLoss


class SymmetricOperator(Protocol):
    """A symmetric matrix that is known by its products.

    Attributes:
        like_N: A vector of the type and on the device of those it is multiplied with.
    """

    like_N: Tensor

    def product(self, v_N: Tensor) -> Tensor:
        """The matrix times a vector, (N,)."""
        ...


class Hessian:
    """Second derivatives of a mean loss with respect to all trainable parameters, flattened in the model's order.

    A product goes once through the batches, forward and twice backward, and keeps one batch's graph at a time.

    Args:
        loss: The loss.

    Raises:
        ValueError: No parameter is trainable.
    """

    def __init__(self, loss: MeanLoss) -> None:
        if not loss.parameters:
            raise ValueError(
                'The model has no parameter with requires_grad, so its loss has no Hessian. Unfreeze some.'
            )
        self.loss = loss
        self.parameters = list(loss.parameters.values())
        self.like_N = torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    def product(self, v_N: Tensor) -> Tensor:
        """H v, (N,). Raises ValueError if the loss or a derivative is not finite."""
        directions = split_like(v_N, self.parameters)
        with torch.enable_grad():
            result = self.loss.mean_of(lambda total: self._product_of(total, directions))
        if not torch.isfinite(result).all():
            raise ValueError(
                'A product with the Hessian is not finite: the loss or its derivatives overflow at these weights. Look for '
                'NaN in the activations, or compute in float64.'
            )
        return result

    def _product_of(self, total: Tensor, directions: Sequence[Tensor]) -> Tensor:
        # materialised: a parameter need not be in this loss, nor in its gradient
        gradients = torch.autograd.grad(total, self.parameters, create_graph=True, materialize_grads=True)
        along = torch.stack([(gradient * v).sum() for gradient, v in zip(gradients, directions, strict=True)]).sum()
        if not along.requires_grad:  # the loss is linear
            return torch.zeros_like(self.like_N)
        products = torch.autograd.grad(along, self.parameters, materialize_grads=True)
        return torch.cat([product.detach().flatten() for product in products])


def split_like(v_N: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into pieces of the parameters' shapes."""
    parts = torch.split_with_sizes(v_N, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
