"""Where jobs run: in the calling thread, in threads that start programs, or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import torch
from rich.console import Console

Backend = Literal['inline', 'threads', 'processes']


class Processes:
    """The programs that jobs of this process are running."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopping = False
        self.guard = threading.Lock()

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | None:
        """Start a program; return None if the run is being stopped."""
        with self.guard:
            if self.stopping:
                return None
            process = subprocess.Popen(command, **options)
            self.running.add(process)
            return process

    def stop(self, *, kill: bool = False) -> None:
        """Send SIGTERM (or SIGKILL) to all programs and let no other start."""
        with self.guard:
            self.stopping = True
            for process in self.running:
                process.kill() if kill else process.terminate()


def threads_per_job(jobs: int) -> int:
    """Share of the cores for each of several jobs at a time."""
    return max(1, (os.cpu_count() or 1) // jobs)


class InlineExecutor(Executor):
    """Runs everything at once in the calling thread."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function; exceptions other than ValueError are raised immediately."""
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except ValueError as error:
            future.set_exception(error)
        return future


def start_worker(threads: int) -> None:
    """Set the number of threads, and leave Ctrl-C, which reaches all processes, to the main one: it sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


@contextmanager
def executor_of(backend: Backend, workers: int, processes: Processes, console: Console) -> Iterator[Executor]:
    """An executor that is shut down at the end, or stopped if the run is interrupted or raises."""
    if backend == 'inline':
        yield InlineExecutor()
        return
    if backend == 'threads':
        pool: Executor = ThreadPoolExecutor(workers)
    else:
        threads, spawn = threads_per_job(workers), multiprocessing.get_context('spawn')
        os.environ['OMP_NUM_THREADS'] = str(threads)  # read by a library when a worker imports it
        pool = ProcessPoolExecutor(workers, spawn, initializer=start_worker, initargs=(threads,))
    try:
        yield pool
    except BaseException:
        console.print('Waiting until running jobs have saved their state. Press Ctrl-C again to stop them now.')
        children = multiprocessing.active_children() if backend == 'processes' else []
        for child in children:
            child.terminate()
        processes.stop()
        try:
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            for child in children:
                child.kill()
            processes.stop(kill=True)
        raise
    pool.shutdown()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt; outside the main thread signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
