"""Everything a benchmark found, as ``report.json`` has it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mkd_plugin.benchmark.jobs import Job, Trainings
from mkd_plugin.benchmark.scores import differences, summarize
from mkd_plugin.engine.provenance import software
from mkd_plugin.version import __version__

POINTS = 200  # of a curve


def collect(trainings: Trainings, tasks: Sequence[str], skipped: Mapping[str, str], command: str) -> dict[str, Any]:
    """The report.

    Args:
        trainings: All of them.
        tasks: Those that were run.
        skipped: Task → why it was not.
        command: What the user typed.
    """
    jobs = trainings.plan(list(tasks))
    results = {job: result for job in jobs if (result := trainings.result(job)) is not None}
    settings = trainings.settings
    return dict(
        version=__version__,
        software=software(),
        command=command,
        settings={**asdict(settings), 'seeds': trainings.suite.seeds},
        starts={name: asdict(start) for name, start in trainings.starts.items()},
        tasks={
            name: dict(
                config=str(task.config),
                scratch=str(task.scratch or task.config),
                metrics=[metric.label for metric in task.metrics],
                skipped=skipped.get(name),
                scores=summaries(trainings, name, results) if name in tasks else {},
            )
            for name, task in trainings.suite.tasks.items()
        },
        jobs=[entry(trainings, job, results.get(job)) for job in jobs],
        seconds=round(sum(result['seconds'] for result in results.values()), 1),
    )


def summaries(trainings: Trainings, task: str, results: Mapping[Job, Any]) -> dict[str, Any]:
    """Metric → start → mean, spread, seeds, and the difference to what it is compared with."""
    against = trainings.settings.against
    found: dict[str, Any] = {}
    for metric in trainings.suite.tasks[task].metrics:
        by_start: dict[str, dict[int, float]] = {start: {} for start in trainings.starts}
        for job, result in results.items():
            if job.task == task:
                by_start[job.start][job.seed] = result['scores'][metric.label]
        found[metric.label] = {
            start: dict(
                **summarize(values),
                difference=differences(values, by_start[against]) if against and start != against else None,
            )
            for start, values in by_start.items()
            if values
        }
    return found


def entry(trainings: Trainings, job: Job, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """A training."""
    rows = trainings.rows(job)
    failure = trainings.failed.get(job)
    return dict(
        **asdict(job),
        key=trainings.key(job),
        command=shlex.join(trainings.command(job)),
        **(result or {}),
        failed=asdict(failure) if failure else None,
        curves=dict(
            loss=thinned([[row['iter'], row['loss']] for row in rows if row['mode'] == 'train' and 'loss' in row]),
            **{
                metric.label: validated(rows, metric.key, metric.scale)
                for metric in trainings.suite.tasks[job.task].metrics
            },
        ),
    )


def validated(rows: Sequence[Mapping[str, Any]], key: str, scale: float) -> list[list[float]]:
    """(iteration, score in per cent) of every validation that gave it."""
    found = [(row['iter'], row.get(key)) for row in rows if row['mode'] == 'val']
    return [[iteration, value * scale] for iteration, value in found if value is not None]


def thinned(points: list[list[float]]) -> list[list[float]]:
    """At most about ``POINTS`` of them, evenly, with the last one."""
    step = -(-len(points) // POINTS)
    return points[: -1 : step or 1] + points[-1:]
