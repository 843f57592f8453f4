"""What is done when a run ends, whichever way it does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mkd_plugin.engine.checkpoints import point_to, remove, save_atomically
from mkd_plugin.engine.exact_data import at_optimizer_step
from mkd_plugin.registry import HOOKS


def is_training(runner: Runner) -> bool:
    """Whether ``before_run`` comes from ``runner.train()``: only that has built the loop by then."""
    return runner._train_loop is not None and not isinstance(runner._train_loop, dict)


def when_run_ends(runner: Runner, action: Callable[[BaseException | None], Any]) -> None:
    """Call ``action`` when the training loop ends: with None, or with what stopped it, which is then raised again.

    mmengine calls no hook after an exception, Ctrl-C or ``SystemExit``, so the loop's ``run`` is wrapped. Of several
    actions the first that was given is called first.

    Args:
        runner: A run that is about to train, in a hook's ``before_run``.
        action: What to do.
    """
    run = runner.train_loop.run

    def guarded() -> Any:
        try:
            result = run()
        except BaseException as error:
            action(error)
            raise
        action(None)
        return result

    runner.train_loop.run = guarded


REQUEUE = 85
FILE = 'preempted.pth'


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM or SIGUSR1: save ``preempted.pth`` after the next step of the optimiser and exit with code 85.

    85 tells a job script to queue the run again, which then goes on with ``resume=True``; any other code is an error.
    With several processes all have to stop at the same step, which they agree upon every ``agree_every`` steps only, so
    that no step waits for it. Plain ``torchrun`` exits with 1 whatever its children say; ``tools/dist_train.sh`` passes 85 on.

    Args:
        signals: Names of the signals.
        exit_code: The exit code.
        agree_every: Steps of the optimiser between two agreements of several processes.

    Raises:
        ValueError: There is no such signal, or ``agree_every`` is not positive.
    """

    priority = 'LOWEST'  # what it saves must include what other hooks do at that step

    def __init__(
        self, *, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1'), exit_code: int = REQUEUE, agree_every: int = 10
    ) -> None:
        known = sorted(signal.Signals.__members__)
        unknown = sorted(set(signals) - set(known))
        if unknown:
            raise ValueError(f'signals={list(signals)}: this system has no {unknown}. It has {known}.')
        if agree_every < 1:
            raise ValueError(f'agree_every={agree_every}: it must be at least 1.')
        self.signals, self.exit_code, self.agree_every = list(signals), exit_code, agree_every
        self.received: str | None = None
        self.before: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen."""
        self.received = None
        if threading.current_thread() is threading.main_thread():  # python allows it nowhere else
            self.before = {name: signal.signal(signal.Signals[name], self._receive) for name in self.signals}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save and leave, if asked to and if there is anything left to do."""
        done = runner.iter + 1
        if done >= runner.max_iters or not at_optimizer_step(runner, done) or not self._agreed(runner, done):
            return
        runner.logger.warning(f'{self.received or "Another process was told"}: saving after iteration {done}.')
        # by_epoch=False: mmengine's FlexibleRunner would else say that the epoch is over
        save_atomically(runner, runner.work_dir, FILE, meta=dict(epoch=runner.epoch, iter=done), by_epoch=False)
        path = str(Path(runner.work_dir, FILE))
        if is_main_process():
            point_to(path, work_dir=runner.work_dir)
        self._stop_listening()
        runner.logger.warning(f'Saved {path}; exit code {self.exit_code}: start the run again with resume=True.')
        raise SystemExit(self.exit_code)

    def after_train(self, runner: Runner) -> None:
        """Clean up: the run is complete, and its last checkpoint is newer."""
        self._stop_listening()
        if is_main_process():
            remove(Path(runner.work_dir, FILE))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def _agreed(self, runner: Runner, done: int) -> bool:
        if get_world_size() == 1:
            return self.received is not None
        steps = done // getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if steps % self.agree_every:
            return False
        told = torch.tensor(int(self.received is not None))
        all_reduce(told, 'max')
        return bool(told)

    def _stop_listening(self) -> None:
        for name, handler in self.before.items():
            signal.signal(signal.Signals[name], handler)
        self.before = {}
