"""Stops a run whose loss is no number, before that reaches a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mkd_plugin.engine.checkpoints import last_good
from mkd_plugin.engine.teacher_updates import bare_model
from mkd_plugin.registry import HOOKS

ADVICE = (
    'Start again from it with resume=True: the same numbers come again, so change something first, for example a lower '
    'rate, clip_grad, or bfloat16 instead of float16 (default_hooks.exact_resume.allow_changed_config=True).'
)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Checks every loss, but reads them together at the log interval and before a checkpoint: no step waits for it.

    Before a checkpoint it looks at the weights too, for a finite loss can have an infinite gradient.

    Args:
        interval: Iterations between two checks; the ``LoggerHook``'s by default.

    Raises:
        ValueError: ``interval`` is not positive.
        FloatingPointError: A loss or a weight is NaN or infinite; the first such step and the last good checkpoint are
            named.
    """

    priority = 'HIGH'  # before the hooks that save

    def __init__(self, *, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'interval={interval}: it must be at least 1, or None for the interval of the log.')
        self.interval = interval
        self.step = 0
        self.losses: list[tuple[int, Tensor]] = []  # since the last check, with the number of their step

    def before_train(self, runner: Runner) -> None:
        """Find the log's interval."""
        logged = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self.every = self.interval or (logged or [50])[0]
        self.losses = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Remember the loss, and check at the interval."""
        self.step = runner.iter + 1
        loss = (outputs or {}).get('loss')
        if isinstance(loss, Tensor):
            self.losses.append((self.step, loss.detach()))
        if self.step % self.every == 0:
            self._check(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Let nothing but numbers into a checkpoint."""
        self._check(runner)
        for name, _ in bare_model(runner).named_parameters():
            weight = checkpoint['state_dict'].get(name)
            if weight is not None and weight.is_floating_point() and not torch.isfinite(weight).all():
                raise FloatingPointError(
                    f'After step {self.step} {name} holds NaN or infinity; nothing was saved. The last good '
                    f'checkpoint is {last_good(runner.work_dir)}. {ADVICE}'
                )

    def after_train(self, runner: Runner) -> None:
        """Check the last steps."""
        self._check(runner)

    def _check(self, runner: Runner) -> None:
        losses, self.losses = self.losses, []
        if not losses:
            return
        values = torch.stack([loss.float().reshape(()) for _, loss in losses]).tolist()
        for (step, _), value in zip(losses, values, strict=True):
            if value - value != 0:  # NaN or infinite
                raise FloatingPointError(
                    f'The loss of step {step} is {value}; the run was stopped. The last good checkpoint is '
                    f'{last_good(runner.work_dir)}. {ADVICE}'
                )


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
