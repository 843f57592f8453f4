"""Run a benchmark: from checkpoints to trainings, scores, a JSON file and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mkd_plugin.compat.hosts import HOSTS
from mkd_plugin.preflight.checks import check_work_dir, missing_files
from mkd_plugin.reporting.benchmark.jobs import Training, Trainings
from mkd_plugin.reporting.benchmark.page import benchmark_document, cell, draw
from mkd_plugin.reporting.benchmark.results import collect
from mkd_plugin.reporting.benchmark.suites import Settings, Task, read_starts
from mkd_plugin.reporting.experiment import JobFailed, run_jobs
from mkd_plugin.reporting.page import write_page
from mkd_plugin.utils.files import plain, write_whole


def benchmark(
    checkpoints: Sequence[str], settings: Settings, *, out: Path, command: str, console: Console, train: bool = True
) -> dict[str, Any]:
    """Fine-tune from all checkpoints, ``[NAME=]FILE`` each; write ``report.json`` and ``index.html``, and return the report.

    Finished trainings are skipped; without ``train``, so are all others. ``command`` is what the user typed, for the
    report.

    Raises:
        ValueError: A setting is not possible.
        KeyboardInterrupt: Interrupted by Ctrl-C or SIGTERM. The trainings have saved their state; rerun to resume.
    """
    suite, starts = settings.build(), read_starts(checkpoints, settings.against)
    check_work_dir(out)
    suite.prepare()
    trainings = Trainings(suite, starts, settings, out)
    skipped = {name: reason for name, task in suite.tasks.items() if (reason := why_not(task, trainings))}
    for name, reason in skipped.items():
        console.print(f'[yellow]Skipping {name}:[/] {escape(reason)}', soft_wrap=True, highlight=False)
    tasks = [name for name in suite.tasks if name not in skipped]
    planned = trainings.plan(tasks)
    failed: dict[str, JobFailed] = {}
    if train:
        failed = run_jobs(
            [trainings.job(training) for training in planned],
            trainings.store,
            console=console,
            workers=settings.jobs,
            backend='threads',
            describe=trainings.describe,
        ).failures
    console.print('Drawing curves and predictions.')
    pictures, undrawn = draw(trainings, planned)
    found = collect(trainings, tasks, skipped, failed, command)
    report: dict[str, Any] = plain({**found, 'undrawn': undrawn})
    write_whole(out / 'report.json', json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + '\n')
    write_page(out / 'index.html', benchmark_document(report, pictures, out))
    console.print(score_table(report))
    return report


def why_not(task: Task, trainings: Trainings) -> str | None:
    """Why a task cannot be trained here: its host or its data are missing."""
    host = next(host for host in HOSTS if host.module == task.kind.host)
    if not host.installed():
        return f'{host.module} is not installed: pip install "{host.onedl}{host.supported}".'
    config = trainings.config(Training(task.name, next(iter(trainings.starts)), 0))
    missing = [found for found in missing_files(config) if 'checkpoint' not in found.option]
    if not missing:
        return None
    first = {found.path: found.option for found in reversed(missing)}
    listed = ', '.join(f'{path} ({option})' for path, option in reversed(first.items()))
    tree = f'\nExpected:\n{task.tree}\nAnother folder: --cfg-options {task.name}:data_root=DIR.' if task.tree else ''
    return f'data not found: {listed}.{tree}'


def score_table(report: dict[str, Any]) -> Table:
    """Starts down, metrics across."""
    labels = [(task, label) for task, about in report['tasks'].items() for label in about['scores']]
    table = Table('start', *(label for _, label in labels), title='per cent, mean ± standard deviation over seeds')
    for start in report['starts']:
        table.add_row(start, *(cell(report['tasks'][task]['scores'][label].get(start)) for task, label in labels))
    return table
