"""How far a pass is and how long it will still take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from mmengine.logging import print_log
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mkd_plugin.engine.progress import someone_looks

Report = Callable[[int], None]  # how many are done

EVERY = 10.0  # seconds between lines


@contextmanager
def shown(title: str, total: int, *, done: int = 0) -> Iterator[Report]:
    """Give a function that takes how many of ``total`` are done; ``done`` of them were before."""
    if someone_looks(sys.stderr, os.environ):
        columns = (
            TextColumn('{task.description}', markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total, completed=done)
            yield lambda now: bar.update(task, completed=now)
    else:
        yield lines(title, total, done)


def lines(title: str, total: int, before: int) -> Report:
    """A line of the log every ten seconds."""
    start = last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY and done > before:
            left = (now - start) / (done - before) * (total - done)
            print_log(f'{title}: {done} of {total}, {timedelta(seconds=round(left))} left', logger='current')
            last = now

    return report
