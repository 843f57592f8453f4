"""Helpers with which hooks query a training run, or are called when it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from operator import itemgetter
from typing import Any, TypeVar

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

Result = TypeVar('Result')


def bare_model(runner: Runner) -> Any:
    """The model without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def is_training(runner: Runner) -> bool:
    """Whether ``before_run`` was called by ``runner.train()``, the only caller that has built the training loop by then."""
    return runner._train_loop is not None and not isinstance(runner._train_loop, dict)


def runs_by_epoch(runner: Runner) -> bool:
    """Whether the training loop counts epochs, not only iterations."""
    return hasattr(runner.train_loop, 'run_epoch')


def when_run_ends(runner: Runner, action: Callable[[BaseException | None], Any], *, last: bool = False) -> None:
    """Call ``action`` when the training loop ends, with None or with the exception that ended it; for a ``before_run``.

    mmengine calls no hook after an exception, Ctrl-C or ``SystemExit``, so this wraps the loop's ``run``. Exceptions are
    raised again after the actions, which run in the order in which they were registered, those with ``last`` after all
    others.
    """
    run = runner.train_loop.run
    actions: list[tuple[bool, Callable[[BaseException | None], Any]]] | None = getattr(run, 'actions', None)
    if actions is not None:
        actions.append((last, action))
        return
    actions = [(last, action)]

    def guarded() -> Any:
        error: BaseException | None = None
        with ExitStack() as stack:  # calls the last one pushed first
            try:
                return run()
            except BaseException as raised:
                error = raised
                raise
            finally:
                for _, then in sorted(actions, key=itemgetter(0))[::-1]:
                    stack.callback(then, error)

    setattr(guarded, 'actions', actions)  # noqa: B010 - mypy knows no attributes of functions
    runner.train_loop.run = guarded


def on_main(action: Callable[[], Result]) -> Result:
    """Call ``action`` on rank 0 and return its result on every rank.

    Raises:
        Exception: That of the action, on rank 0.
        SystemExit: On the other ranks if it raised, so that the message is printed once.
    """
    answer: list[Any] = [None, False]
    error: Exception | None = None
    if is_main_process():
        try:
            answer = [action(), True]
        except Exception as raised:
            error = raised
    broadcast_object_list(answer)
    if error is not None:
        raise error
    if not answer[1]:
        raise SystemExit(2)  # the commands' exit code for a message
    result: Result = answer[0]
    return result


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
