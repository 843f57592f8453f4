"""What is done when a run ends, whichever way it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.runner import Runner

__all__ = ['is_training', 'when_run_ends']


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
