"""Runs jobs in worker processes, each after those it needs, and says how far it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from types import FrameType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reproduce.jobs import Experiment, Job

__all__ = ['run_jobs']


def start_worker() -> None:
    """One thread each."""
    torch.set_num_threads(1)


def run_jobs(experiment: Experiment, jobs: Sequence[Job], *, workers: int, console: Console) -> None:
    """Do every job that is not done.

    An interruption (Ctrl-C, SIGTERM) reaches the workers, where a pre-training saves its state; the same call goes on
    from there.

    Raises:
        KeyboardInterrupt: It was interrupted.
    """
    waiting = [job for job in jobs if experiment.result(job) is None]
    console.print(f'{len(jobs)} jobs, {len(jobs) - len(waiting)} of them done before.')
    if not waiting:
        return
    os.environ['OMP_NUM_THREADS'] = '1'  # read by a library when a worker imports it
    before = signal.signal(signal.SIGTERM, interrupt)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), initializer=start_worker)
    try:
        work_through(pool, experiment, waiting, workers, console)
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()  # a pre-training saves and leaves
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    pool.shutdown()


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt


def work_through(
    pool: ProcessPoolExecutor, experiment: Experiment, jobs: Sequence[Job], workers: int, console: Console
) -> None:
    """Give each free worker the first job that waits for nothing."""
    columns = (TextColumn('jobs'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    waiting, running, done = list(jobs), dict[Future[None], Job](), 0
    began, total, steps = time.monotonic(), sum(map(experiment.steps, jobs)), 0
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task('', total=len(jobs))
        while waiting or running:
            for job in ready(experiment, waiting, list(running.values()))[: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(experiment.do, job)] = job
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                future.result()
                done, steps = done + 1, steps + experiment.steps(job)
                progress.advance(bar)
                if not console.is_terminal:  # a log file gets lines, a terminal the bar
                    left = (time.monotonic() - began) * (total - steps) / steps / 60
                    print(f'[{done}/{len(jobs)}] {job}: {experiment.result(job)}, {left:.0f} minutes left', flush=True)


def ready(experiment: Experiment, waiting: Sequence[Job], running: Sequence[Job]) -> list[Job]:
    """The waiting jobs whose needs are done, in their order."""
    unfinished = {*waiting, *running}
    return [job for job in waiting if not unfinished.intersection(experiment.needs(job))]
