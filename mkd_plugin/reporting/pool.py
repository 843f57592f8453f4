"""Jobs that wait for each other, several at a time, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from types import FrameType
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

POLL = 5.0  # seconds between two looks at how far the running jobs are

J = TypeVar('J')


class Work(Protocol[J]):
    """What there is to do."""

    def needs(self, job: J) -> Iterable[J]:
        """The jobs that have to be done before."""

    def steps(self, job: J) -> float:
        """About how long it takes, in any unit; for the time left."""

    def do(self, job: J) -> None:
        """Run it to its end."""


def work_through(
    executor: Executor,
    work: Work[J],
    jobs: Sequence[J],
    *,
    workers: int,
    console: Console,
    outcome: Callable[[J], object],
    part: Callable[[J], float] = lambda job: 0.0,
) -> None:
    """Give each free worker the first job that waits for nothing.

    Args:
        executor: Calls ``work.do``.
        work: What the jobs need and take, and how one is done.
        jobs: Those to do.
        workers: How many at once.
        console: It gets a line for each job that ends, and, if it is a terminal, a bar below them.
        outcome: What is said of a job that has ended.
        part: How much of a running job is done, 0 … 1.

    Raises:
        Exception: Whatever ``work.do`` raises, as soon as it does.
    """
    left = TextColumn('{task.fields[left]}')
    columns = (TextColumn('jobs'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left)
    waiting, running, done = list(jobs), dict[Future[None], J](), list[J]()
    began, at_start = time.monotonic(), {job: part(job) for job in jobs}
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task('', total=len(jobs), left='')
        while waiting or running:
            for job in ready(work, waiting, list(running.values()))[: workers - len(running)]:
                waiting.remove(job)
                running[executor.submit(work.do, job)] = job
            finished, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
            ended = [running.pop(future) for future in finished]
            done += ended
            now = sum(work.steps(job) * (1 - at_start[job]) for job in done)
            now += sum(work.steps(job) * (part(job) - at_start[job]) for job in running.values())
            total = sum(work.steps(job) * (1 - at_start[job]) for job in jobs)
            text = minutes((time.monotonic() - began) * (total - now) / now) if now > 0 else ''
            progress.update(bar, completed=len(done), left=text)
            for future in finished:
                future.result()
            for number, job in enumerate(ended, start=len(done) - len(ended) + 1):
                line = f'[{number}/{len(jobs)}] {job}: {outcome(job)}'
                console.print(f'{line}; {text}' if text else line, markup=False, highlight=False, soft_wrap=True)


def minutes(seconds: float) -> str:
    """Words for the time left."""
    return f'{seconds / 60:.0f} minutes left'


def ready(work: Work[J], waiting: Sequence[J], running: Sequence[J]) -> list[J]:
    """The waiting jobs whose needs are done, in their order."""
    unfinished = {*waiting, *running}
    return [job for job in waiting if not unfinished.intersection(work.needs(job))]


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM like Ctrl-C: a handler for ``signal.signal``."""
    raise KeyboardInterrupt
