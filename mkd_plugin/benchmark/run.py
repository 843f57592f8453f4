"""From checkpoints to trainings, scores, a JSON and a page."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mkd_plugin.benchmark.jobs import Job, Trainings
from mkd_plugin.benchmark.page import cell, write_page
from mkd_plugin.benchmark.pictures import draw
from mkd_plugin.benchmark.report import collect
from mkd_plugin.benchmark.settings import Settings, read_starts
from mkd_plugin.benchmark.suites import Task
from mkd_plugin.compat.hosts import HOSTS
from mkd_plugin.preflight.data import check_work_dir, missing_files
from mkd_plugin.reporting.pool import interrupt, work_through
from mkd_plugin.utils.files import plain, write_whole


def benchmark(
    checkpoints: Sequence[str],
    settings: Settings,
    *,
    out: Path,
    command: str,
    console: Console,
    train: bool = True,
) -> dict[str, Any]:
    """Train what is not trained yet, and write ``report.json`` and ``index.html``.

    Args:
        checkpoints: Pre-trainings, ``[NAME=]FILE`` each.
        settings: Which trainings.
        out: Folder of everything; what it has of the same settings is not done again.
        command: What the user typed, for the report.
        console: Where progress goes.
        train: False for a report on what is done.

    Returns:
        The report.

    Raises:
        ValueError: Something in the settings cannot be.
        KeyboardInterrupt: It was interrupted (Ctrl-C, SIGTERM); trainings have saved their state, the same call goes on.
    """
    suite, starts = settings.build(), read_starts(checkpoints, settings.against)
    check_work_dir(out)
    out.mkdir(parents=True, exist_ok=True)
    suite.prepare()
    trainings = Trainings(suite, starts, settings, out)
    skipped = {name: reason for name, task in suite.tasks.items() if (reason := why_not(task, trainings))}
    for name, reason in skipped.items():
        console.print(f'[yellow]{name} is left out:[/] {reason}', soft_wrap=True, highlight=False)
    tasks = [name for name in suite.tasks if name not in skipped]
    jobs = trainings.plan(tasks)
    if train:
        run(trainings, jobs, console)
    console.print('Drawing curves and predictions.')
    pictures, undrawn = draw(trainings, jobs)
    report = plain({**collect(trainings, tasks, skipped, command), 'undrawn': undrawn})
    write_whole(out / 'report.json', json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + '\n')
    write_page(out / 'index.html', report, pictures)
    console.print(score_table(report))
    return dict(report)


def why_not(task: Task, trainings: Trainings) -> str | None:
    """Why a task cannot be trained here: its host or its data are missing."""
    host = next(host for host in HOSTS if host.module == task.host)
    if not host.installed():
        return f'{host.module} is not installed: pip install "{host.onedl}{host.supported}".'
    missing = [
        found
        for found in missing_files(trainings.config(Job(task.name, next(iter(trainings.starts)), 0)))
        if 'checkpoint' not in found.option
    ]
    if not missing:
        return None
    first = {found.path: found.option for found in reversed(missing)}
    listed = ', '.join(f'{path} ({option})' for path, option in reversed(first.items()))
    tree = f'\nExpected:\n{task.tree}\nAnother place: --cfg-options {task.name}:data_root=DIR.' if task.tree else ''
    return f'there is no {listed}.{tree}'


def run(trainings: Trainings, jobs: Sequence[Job], console: Console) -> None:
    """Do every training that is not done.

    Raises:
        KeyboardInterrupt: It was interrupted; every training has ended.
    """
    waiting = [job for job in jobs if trainings.result(job) is None]
    console.print(f'{len(jobs)} trainings, {len(jobs) - len(waiting)} of them done before.', highlight=False)
    workers = trainings.settings.jobs
    before = signal.signal(signal.SIGTERM, interrupt)
    executor = ThreadPoolExecutor(workers)
    try:
        work_through(
            executor,
            trainings,
            waiting,
            workers=workers,
            console=console,
            outcome=trainings.outcome,
            part=trainings.part,
        )
    except BaseException:
        trainings.stop()
        console.print('Waiting until the running trainings have saved their state. Ctrl-C: not to wait.')
        try:
            executor.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            trainings.stop(kill=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    executor.shutdown()


def score_table(report: dict[str, Any]) -> Table:
    """Starts down, metrics across."""
    labels = [(task, label) for task, about in report['tasks'].items() for label in about['scores']]
    table = Table('start', *(label for _, label in labels), title='per cent, mean ± standard deviation over seeds')
    for start in report['starts']:
        table.add_row(start, *(cell(report['tasks'][task]['scores'][label].get(start)) for task, label in labels))
    return table
