"""Experiments: jobs with keys and dependencies, each run once, with results that survive interruptions.

``Job.run`` is called with a :class:`JobContext` and returns JSON values (tensors are converted to lists). Jobs whose key is
in the store are skipped, so rerunning a command resumes it. A job that raises ValueError is recorded as failed, jobs that
depend on it fail too, and all others still run; any other exception ends the run.

Backends:
    ``inline``: one job at a time in the calling thread. For computations that use all cores themselves.
    ``threads``: for jobs that start programs with :meth:`JobContext.run_command`. An interruption sends SIGTERM to the
        programs and waits until they have saved their state.
    ``processes``: for Python functions that run side by side, each with its share of the cores. ``run`` is pickled. An
        interruption sends SIGTERM to the workers.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mkd_plugin.reporting.store import Record, Store
from mkd_plugin.reporting.workers import Backend, Processes, executor_of, sigterm_as_interrupt

POLL = 5.0  # seconds between two updates of the progress of running jobs
LOG, LOG_LINES = 'log.txt', 15


class JobFailed(ValueError):
    """A job cannot deliver its result: a sentence, the file with the complete output (if any), and its last lines."""

    def __init__(self, reason: str, log: str = '', lines: Sequence[str] = ()) -> None:
        super().__init__(reason, log, tuple(lines))
        self.reason, self.log, self.lines = reason, log, tuple(lines)

    def __str__(self) -> str:
        return '\n'.join(
            [f'{self.reason} ({self.log})' if self.log else self.reason, *(f'    {x}' for x in self.lines)]
        )


@dataclass(frozen=True)
class JobContext:
    """What a job may use while it runs."""

    work_dir: Path  #: files in it are still there when an interrupted job is run again
    #: call it with the fraction that is done, 0 … 1; no effect with the backend ``processes``
    report: Callable[[float], None]
    lock: int  #: descriptor that programs inherit, so that no other run starts the job while they live
    processes: Processes  #: programs that are running

    def run_command(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Run a program and return its exit code; its output is appended to ``log.txt`` in the work folder.

        Raises InterruptedError if the run is being stopped.
        """
        log = self.work_dir / LOG
        with log.open('ab') as output:
            process = self.processes.start(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C reaches it as SIGTERM through ``stop``
                pass_fds=[self.lock],
            )
            code = 0
            if process is not None:
                code = process.wait()
                self.processes.running.discard(process)
        if self.processes.stopping:
            raise InterruptedError('the run was interrupted')
        return code

    def failure(self, reason: str) -> JobFailed:
        """Return an exception with the end of the log."""
        log = self.work_dir / LOG
        lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        return JobFailed(reason, str(log), lines[-LOG_LINES:])


@dataclass(frozen=True, eq=False)
class Job:
    """A unit of work."""

    name: str  #: shown to the user
    key: str  #: identifies the result in the store; see ``store.key_of``
    run: Callable[[JobContext], Any]  #: computes the result
    dependencies: tuple[str, ...] = ()  #: keys of jobs whose results must exist before
    cost: float = 1.0  #: expected duration relative to other jobs; only the time left depends on it
    group: str = ''  #: jobs of about the same duration; measured durations of a group replace ``cost``
    progress: Callable[[], float] | None = None  #: the fraction that is done, for jobs that do not call ``report``


@dataclass(frozen=True)
class Outcome:
    """What a run produced, by key."""

    records: dict[str, Record] = field(default_factory=dict)  #: of all finished jobs, run now or earlier
    failures: dict[str, JobFailed] = field(default_factory=dict)


def run_jobs(
    jobs: Sequence[Job],
    store: Store,
    *,
    console: Console,
    workers: int = 1,
    backend: Backend = 'inline',
    describe: Callable[[Record], str] | None = None,
) -> Outcome:
    """Run all jobs that are not in the store, in order of preference, each after its dependencies.

    ``console`` receives one line per finished job, in which ``describe`` sums up its result (by default its duration), and
    on a terminal a progress bar with the time left. ``workers`` jobs run at a time; the ``inline`` backend ignores it.

    Raises:
        KeyboardInterrupt: Interrupted by Ctrl-C or SIGTERM. All jobs have stopped; rerun to resume.
        Exception: Anything but ValueError that a job raises.
    """
    run = _Run(jobs, store, console, 1 if backend == 'inline' else workers, describe or duration)
    if run.waiting:
        with (
            sigterm_as_interrupt(),
            run.bar,
            executor_of(backend, workers, run.processes, console) as executor,
        ):
            run.work_through(executor)
    return run.outcome


def duration(record: Record) -> str:
    """Describe a result by the time it took."""
    return f'{record.seconds:.1f} s' if record.seconds < 90 else f'{record.seconds / 60:.1f} minutes'


class _Run:
    """The state of a run: which jobs wait, which are running, and how much is done."""

    def __init__(
        self, jobs: Sequence[Job], store: Store, console: Console, workers: int, describe: Callable[[Record], str]
    ) -> None:
        self.jobs = {job.key: job for job in jobs}
        self.store, self.console, self.workers, self.describe = store, console, workers, describe
        self.outcome, self.processes = Outcome(), Processes()
        for key in self.jobs:
            if record := store.read(key):
                self.outcome.records[key] = record
        self.waiting = [job for job in self.jobs.values() if job.key not in self.outcome.records]
        self.total = len(self.waiting)
        current, left = TextColumn('{task.description}'), TextColumn('{task.fields[left]}')
        columns = (current, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left)
        self.bar = Progress(*columns, console=console, disable=not console.is_interactive)
        self.task = self.bar.add_task('', total=self.total, left='')
        self.futures: dict[Future[Record], str] = {}
        self.running: dict[str, Job] = {}
        self.reported: dict[str, float] = {}
        self.at_start = {job.key: job.progress() if job.progress else 0.0 for job in self.waiting}
        self.began = time.monotonic()
        done_before = len(self.jobs) - self.total
        console.print(f'{len(self.jobs)} jobs, {done_before} already done.', highlight=False)

    def show(self, description: str) -> None:
        """Show on the bar what is running."""
        done = self.total - len(self.waiting) - len(self.running) + sum(map(self.fraction, self.running.values()))
        self.bar.update(self.task, completed=done, description=escape(description), left=self.time_left())

    def work_through(self, executor: Executor) -> None:
        """Keep all workers busy until no job is left."""
        while self.waiting or self.running:
            self.fail_dependents()
            ready = [job for job in self.waiting if self.outcome.records.keys() >= set(job.dependencies)]
            for job in ready[: self.workers - len(self.running)]:
                self.start(job, executor)
            if self.futures:
                finished, _ = wait(self.futures, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in finished:
                    self.finish(self.running.pop(self.futures.pop(future)), future)
                self.show(', '.join(job.name for job in self.running.values()))

    def start(self, job: Job, executor: Executor) -> None:
        self.waiting.remove(job)
        self.running[job.key] = job
        self.show(job.name)
        call = partial(execute, job.key, job.name, job.run, self.store)
        if not isinstance(executor, ProcessPoolExecutor):  # nothing below can be pickled
            call = partial(call, report=partial(self.report, job), processes=self.processes)
        self.futures[executor.submit(call)] = job.key

    def fail_dependents(self) -> None:
        for job in list(self.waiting):
            failed = [key for key in job.dependencies if key in self.outcome.failures]
            if failed:
                self.waiting.remove(job)
                self.fail(job, JobFailed(f'depends on {self.jobs[failed[0]].name}, which failed'))
            assert all(key in self.jobs for key in job.dependencies), f'{job.name} depends on an unknown job'

    def finish(self, job: Job, future: Future[Record]) -> None:
        """Keep the result of a job, or the reason why it has none."""
        try:
            record = self.outcome.records[job.key] = future.result()
        except ValueError as error:
            self.fail(job, error if isinstance(error, JobFailed) else JobFailed(str(error)))
        else:
            self.say(job, self.describe(record))

    def fail(self, job: Job, failure: JobFailed) -> None:
        self.outcome.failures[job.key] = failure
        self.say(job, f'FAILED: {failure}')

    def say(self, job: Job, text: str) -> None:
        """Print the line of a job that has ended."""
        number, left = self.total - len(self.waiting) - len(self.running), self.time_left()
        line = f'[{number}/{self.total}] {job.name}: {text}'
        self.console.print(f'{line}; {left}' if left else line, markup=False, highlight=False, soft_wrap=True)

    def report(self, job: Job, fraction: float) -> None:
        """Take the progress that a job reports."""
        self.reported[job.key] = min(1.0, fraction)
        self.show(job.name)

    def fraction(self, job: Job) -> float:
        """How much of a job is done, in this run or before."""
        if job.key not in self.running:
            return self.at_start[job.key]
        return job.progress() if job.progress else self.reported.get(job.key, 0.0)

    def time_left(self) -> str:
        """Estimate the time left from what was done since the run began."""
        weights = {key: self.weight(self.jobs[key]) for key in self.at_start}
        total = sum(weights[key] * (1 - fraction) for key, fraction in self.at_start.items())
        left = sum(weights[job.key] * (1 - self.fraction(job)) for job in (*self.waiting, *self.running.values()))
        if left <= 0 or left >= total:
            return ''
        minutes = (time.monotonic() - self.began) * left / (total - left) / 60
        return f'{minutes:.0f} min left' if minutes >= 1 else 'less than 1 min left'

    def weight(self, job: Job) -> float:
        """Expected duration: that of finished jobs of the same group, or else the given cost on the scale of all."""
        finished = {key: record.seconds for key, record in self.outcome.records.items()}
        same = [seconds for key, seconds in finished.items() if job.group and self.jobs[key].group == job.group]
        if same:
            return fmean(same)
        scale = sum(finished.values()) / sum(self.jobs[key].cost for key in finished) if finished else 1.0
        return scale * job.cost


def execute(
    key: str,
    name: str,
    run: Callable[[JobContext], Any],
    store: Store,
    *,
    report: Callable[[float], None] = lambda fraction: None,
    processes: Processes | None = None,
) -> Record:
    """Run one job under its lock and save its result."""
    with store.lock(key) as lock:
        if lock is None:
            raise JobFailed(f'another process is running this job in {store.work_dir(key)}')
        if record := store.read(key):  # finished by another run in the meantime
            return record
        began = time.monotonic()
        try:
            value = run(JobContext(store.work_dir(key), report, lock, processes or Processes()))
        finally:
            seconds = store.add_seconds(key, time.monotonic() - began)
        return store.write(key, name, value, seconds=seconds)
