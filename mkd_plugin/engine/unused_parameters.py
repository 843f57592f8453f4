"""Stops a run in which parts of the model would never be trained."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mkd_plugin.registry import HOOKS

__all__ = ['UnusedParametersHook', 'check_next_backward']

LISTED = 8


@HOOKS.register_module()
class UnusedParametersHook(Hook):
    """After the first backward pass every trainable parameter must have a gradient.

    Without one it is not learned, and DDP stops at its second step with a message that names no parameter. The usual
    reason is an objective that reads only an early tap of the student. A config that says
    ``find_unused_parameters=True`` is left alone.

    Raises:
        ValueError: There are parameters without a gradient; they are named.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the first backward pass, and at no other."""
        meant = runner.cfg.get('find_unused_parameters') or getattr(runner.model, 'find_unused_parameters', False)
        if not meant and isinstance(runner.optim_wrapper, OptimWrapper):
            check_next_backward(runner.model, runner.optim_wrapper)


def check_next_backward(model: nn.Module, optim_wrapper: OptimWrapper) -> None:
    """Let the next ``optim_wrapper.backward`` raise if it leaves a parameter of the model without a gradient."""

    def backward(loss: Tensor, **options: Any) -> None:
        del optim_wrapper.backward  # back to the class's
        optim_wrapper.backward(loss, **options)
        # nothing of what FSDP has shared out may lie on this process
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None and p.numel()]
        if without:
            more = f' and {len(without) - LISTED} more' if len(without) > LISTED else ''
            raise ValueError(
                f'These parameters get no gradient from any loss: {without[:LISTED]}{more}. They would stay as they are. '
                'An objective must read the student behind them (student=…), or make the student less deep, or freeze '
                'them; if it is meant, say find_unused_parameters=True.'
            )

    optim_wrapper.backward = backward
