"""A network's loss over given batches, as one function of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has the mode that it had."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


class MeanLoss:
    """Mean loss over all images of all batches, in evaluation mode; a last short batch counts by its images.

    Args:
        model: The network.
        batches: Anything that can be gone through again and again: a list, a DataLoader.
        loss: (model, batch) → the loss of every image, (B,), for example a cross entropy with ``reduction='none'``.

    Raises:
        ValueError: ``batches`` can be gone through only once.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]) -> None:
        if iter(batches) is batches:
            raise ValueError('batches is an iterator, which is empty after one pass; give a list or a DataLoader.')
        self.model, self.batches, self.loss = model, batches, loss
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def mean_of(self, of_sum: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over images of anything linear in the loss: itself, its gradient, a product with its Hessian.

        Args:
            of_sum: Summed loss of a batch → its share.

        Raises:
            ValueError: There is no image, or the loss is not one number an image.
        """
        total, images = None, 0
        # flash attention has no second derivative
        with evaluation_mode(self.model), sdpa_kernel(SDPBackend.MATH):
            for batch in self.batches:
                loss_B = self.loss(self.model, batch)
                if loss_B.dim() != 1:
                    raise ValueError(
                        f'The loss must be one number an image, (B,), got the shape {tuple(loss_B.shape)}. Use '
                        "reduction='none', and the mean over everything else."
                    )
                share = of_sum(loss_B.sum())
                total = share if total is None else total + share
                images += len(loss_B)
        if total is None or not images:
            raise ValueError('There is no batch to compute a loss of.')
        return total / images

    @torch.no_grad()
    def value(self) -> float:
        """The mean loss."""
        return float(self.mean_of(lambda loss: loss.double()))
