"""Runs jobs in worker processes, each after those it needs, and says how far it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from rich.console import Console

from mkd_plugin.reporting.pool import interrupt, work_through
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
        work_through(pool, experiment, waiting, workers=workers, console=console, outcome=experiment.result)
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()  # a pre-training saves and leaves
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    pool.shutdown()
