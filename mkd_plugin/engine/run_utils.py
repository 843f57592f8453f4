"""Helpers with which hooks query a training run, or are called when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


def bare_model(runner: Runner) -> Any:
    """The model without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def is_training(runner: Runner) -> bool:
    """Whether ``before_run`` was called by ``runner.train()``, the only caller that has built the training loop by then."""
    return runner._train_loop is not None and not isinstance(runner._train_loop, dict)


def runs_by_epoch(runner: Runner) -> bool:
    """Whether the training loop counts epochs, not only iterations."""
    return hasattr(runner.train_loop, 'run_epoch')


def when_run_ends(runner: Runner, action: Callable[[BaseException | None], Any]) -> None:
    """Call ``action`` when the training loop ends, with None or with the exception that ended it; for a ``before_run``.

    mmengine calls no hook after an exception, Ctrl-C or ``SystemExit``, so this wraps the loop's ``run``. Exceptions are
    raised again after the action; actions run in the order in which they were registered.
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


def accumulated_iterations(runner: Runner) -> int:
    """Iterations whose gradients are accumulated for one optimiser step."""
    return int(getattr(runner.optim_wrapper, '_accumulative_counts', 1))


def at_optimizer_step(runner: Runner, done: int) -> bool:
    """Whether no accumulated gradient is pending after ``done`` iterations."""
    return done % accumulated_iterations(runner) == 0 or bool(done >= runner.max_iters)


def log_interval(runner: Runner) -> int:
    """Iterations between two lines of the run's ``LoggerHook``; 50 without one."""
    return next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 50)


def is_due(runner: Runner, interval: int) -> bool:
    """Whether the log has a line after this iteration, or an epoch ends.

    Unlike ``batch_idx``, which restarts at 0 when a run is resumed within an epoch, this is the same in a resumed run.
    """
    done = runner.iter + 1
    if not runs_by_epoch(runner):
        return bool(done % interval == 0)
    length = len(runner.train_dataloader)
    batch = done - runner.epoch * length
    return batch % interval == 0 or batch == length


def images_per_step(runner: Runner) -> int:
    """Images that all processes together load for one iteration."""
    loader = runner.train_dataloader
    size = loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, 'batch_size', 1)
    return int(size) * get_world_size()
