"""Hooks that stop a run: on a signal, on a loss that is not finite, on parameters without a gradient."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mkd_plugin.checkpoint.report import shorten
from mkd_plugin.engine.checkpoints import last_good, point_to, save_atomically
from mkd_plugin.engine.run_folder import resume_command
from mkd_plugin.engine.run_utils import (
    accumulated_iterations,
    at_optimizer_step,
    bare_model,
    is_due,
    is_training,
    log_interval,
    when_run_ends,
)
from mkd_plugin.registry import HOOKS
from mkd_plugin.utils.files import remove_path

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REQUEUE, INTERRUPTED = 85, 130  # exit codes; tools/dist_train.sh and the job scripts know them
PREEMPTED = 'preempted.pth'


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM, SIGUSR1 or Ctrl-C, saves ``preempted.pth`` after the next optimiser step and exits.

    Exit code 85 tells a job script to requeue the run, which then continues with ``resume=True``; after Ctrl-C the code is
    130, and a second Ctrl-C (or SIGTERM) ends the run at once without saving. Any other code is an error.
    Several processes must stop at the same step. They agree on it only every ``agree_every`` steps, so that other steps do
    not wait. Plain ``torchrun`` exits with 1 whatever its children return; ``tools/dist_train.sh`` passes 85 on.

    Args:
        agree_every: Optimiser steps between two agreements of several processes.

    Raises:
        ValueError: ``agree_every`` is not positive.
    """

    priority = 'LOWEST'  # the checkpoint must include what other hooks do at the same step

    def __init__(self, *, agree_every: int = 10) -> None:
        if agree_every < 1:
            raise ValueError(f'agree_every={agree_every}: it must be at least 1.')
        self.agree_every = agree_every
        self.received: str | None = None
        self.announced = False
        self.previous_handlers: dict[signal.Signals, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Restore the handlers when the run ends."""
        if is_training(runner):
            when_run_ends(runner, lambda error: self._restore_handlers())

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers, except for signals that the caller ignores, as nohup does."""
        self.received, self.announced = None, False
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.previous_handlers[number] = signal.signal(number, self._receive)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save and exit if a signal has arrived and the run is not complete anyway."""
        done = runner.iter + 1
        self._announce(runner)
        if done >= runner.max_iters or not at_optimizer_step(runner, done):
            return
        code = self._agreed(runner, done)
        if not code:
            return
        save_atomically(runner, runner.work_dir, PREEMPTED, meta=dict(epoch=runner.epoch, iter=done))
        path = str(Path(runner.work_dir, PREEMPTED))
        if is_main_process():
            point_to(path, work_dir=runner.work_dir)
        command = resume_command() or 'the same program and resume=True'
        runner.logger.warning(f'Saved at iteration {done} ({path}), resume with: {command} (exit code {code})')
        raise SystemExit(code)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Answer a signal during validation; the state is saved after the next step."""
        self._announce(runner)

    def after_train(self, runner: Runner) -> None:
        """Clean up: the run is complete, and its last checkpoint is newer."""
        if is_main_process():
            remove_path(Path(runner.work_dir, PREEMPTED))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == 'SIGINT':  # torchrun turns a second Ctrl-C into SIGTERM
            for each in self.previous_handlers:
                signal.signal(each, signal.SIG_DFL)  # a third one ends the process wherever it is
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def _announce(self, runner: Runner) -> None:
        """Say once that the signal has arrived; a handler itself must not write to a log."""
        if self.received is None or self.announced:
            return
        self.announced = True
        ends = ' Press Ctrl-C again to end at once, without saving.' if self.received == 'SIGINT' else ''
        runner.logger.warning(f'{self.received}: saving after the next optimiser step.{ends}')

    def _agreed(self, runner: Runner, done: int) -> int:
        """The exit code on which all processes agree; 0 to go on."""
        code = {None: 0, 'SIGINT': INTERRUPTED}.get(self.received, REQUEUE)
        if get_world_size() == 1:
            return code
        if done // accumulated_iterations(runner) % self.agree_every:
            return 0
        agreed = torch.tensor(code)
        all_reduce(agreed, 'max')
        return int(agreed)

    def _restore_handlers(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}


ADVICE = (
    'A resumed run repeats the same numbers, so change something before you start again with resume=True, for example a '
    'lower learning rate, clip_grad, or bfloat16 instead of float16 '
    '(with default_hooks.exact_resume.allow_changed_config=True).'
)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a run with a NaN or infinite loss before it reaches a checkpoint.

    Losses are read where the log has a line and before a checkpoint, so that no other step waits for the device. Before
    a checkpoint the weights are checked as well, because a finite loss can have an infinite gradient.

    Raises:
        FloatingPointError: A loss or a weight is NaN or infinite. The message names the first such step and the last good
            checkpoint.
    """

    priority = 'HIGH'  # before the hooks that save

    def __init__(self) -> None:
        self.step = 0
        self.unchecked = 0  # losses since the last check

    def before_train(self, runner: Runner) -> None:
        """Start without losses."""
        self.every, self.unchecked = log_interval(runner), 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count the loss, which is in the message hub, and check at the interval."""
        self.step = runner.iter + 1
        self.unchecked += 'loss' in (outputs or {})
        if is_due(runner, self.every):
            self._check(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check the losses and the weights."""
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
        count, self.unchecked = self.unchecked, 0
        values = runner.message_hub.get_scalar('train/loss').data[0][-count:] if count else []
        for step, value in enumerate(values, self.step - count + 1):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f'The loss of step {step} is {value}; the run was stopped. The last good checkpoint is '
                    f'{last_good(runner.work_dir)}. {ADVICE}'
                )


LISTED = 8


@HOOKS.register_module()
class UnusedParametersHook(Hook):
    """Checks after the first backward pass that every trainable parameter has a gradient.

    A parameter without one is not trained, and DDP stops at its second step with a message that names no parameter. The
    usual reason is an objective that reads only an early tap of the student. ``find_unused_parameters=True`` in the config
    switches the check off.

    Raises:
        ValueError: Some parameters have no gradient; the message names them.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the first backward pass only."""
        allowed = runner.cfg.get('find_unused_parameters') or getattr(runner.model, 'find_unused_parameters', False)
        if not allowed and isinstance(runner.optim_wrapper, OptimWrapper):
            check_next_backward(runner.model, runner.optim_wrapper)


def check_next_backward(model: nn.Module, optim_wrapper: OptimWrapper) -> None:
    """Make the next ``optim_wrapper.backward`` raise ValueError if it leaves a parameter of the model without a gradient."""

    def backward(loss: Tensor, **options: Any) -> None:
        del optim_wrapper.backward  # restore the class's method
        optim_wrapper.backward(loss, **options)
        # under FSDP this process's share of a parameter may be empty
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None and p.numel()]
        if without:
            raise ValueError(
                f'These parameters get no gradient from any loss: {shorten(without, LISTED)}. They would not be trained. '
                'Let an objective read a deeper tap of the student (student=…), use a shallower student, or freeze them. '
                'If this is intended, set find_unused_parameters=True.'
            )

    optim_wrapper.backward = backward
