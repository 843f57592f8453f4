"""Focal losses (Lin et al., 2017) of classes by sigmoid and by softmax.

A target is a class; one that is none of them (the background of sigmoid's classes, a negative number for softmax) is a
negative of all. ``weight`` is (C,), by the target's class, or empty.
"""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # mmcv's least probability, whatever the type


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the loss of each class into ``output``; ``input`` has logits (N, C), ``target`` classes (N,).

    Logarithms are taken of the logits, as in mmdet's own loss on a CPU, so they are right for logits beyond ±17 as well.
    """
    output.copy_(
        sigmoid_losses(input.to(torch.promote_types(input.dtype, torch.float32)), target, weight, gamma, alpha)
    )


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of each class's loss with respect to its logit into ``grad_input``, (N, C)."""
    with torch.enable_grad():
        logits = input.detach().to(torch.promote_types(input.dtype, torch.float32)).requires_grad_()
        total = sigmoid_losses(logits, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(total, logits)[0])


def sigmoid_losses(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the losses, (N, C)."""
    one_hot = (target[:, None] == torch.arange(logits.shape[1], device=target.device)).to(logits)
    losses = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha, gamma)
    return losses * weight[target][:, None] if weight.numel() else losses


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the loss of each row into ``output``, (N,); ``softmax`` has probabilities (N, C)."""
    chosen, factor = chosen_and_factor(softmax, target, weight, alpha)
    output.copy_(-factor * (1 - chosen) ** gamma * chosen.clamp(min=TINY).log())


def softmax_focal_loss_backward(
    softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the derivatives with respect to the logits into ``grad_input``, (N, C); ``buff`` (N,) is scratch space."""
    chosen, factor = chosen_and_factor(softmax, target, weight, alpha)
    logs = chosen.clamp(min=TINY).log()
    slopes = factor * (gamma * (1 - chosen) ** (gamma - 1) * chosen * logs - (1 - chosen) ** gamma)
    one_hot = target[:, None] == torch.arange(softmax.shape[1], device=target.device)
    grad_input.copy_(slopes[:, None] * (one_hot.to(slopes) - softmax))


def chosen_and_factor(softmax: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the target's probability and its factor in the loss, both (N,): 0 for negative targets."""
    softmax = softmax.to(torch.promote_types(softmax.dtype, torch.float32))
    index = target.clamp(min=0)
    factor = alpha * (target >= 0).to(softmax)
    return softmax.gather(1, index[:, None])[:, 0], factor * weight[index] if weight.numel() else factor
