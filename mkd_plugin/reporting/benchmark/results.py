"""Scores of all trainings: means, differences, and everything that ``report.json`` holds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from mkd_plugin.engine.provenance import software
from mkd_plugin.reporting.benchmark.jobs import Training, Trainings
from mkd_plugin.reporting.experiment import JobFailed
from mkd_plugin.reporting.store import Record
from mkd_plugin.version import __version__

POINTS = 200  # of a curve

Seeds = Mapping[int, float]  # seed → score


def summarize(values: Seeds) -> dict[str, Any]:
    """Mean and sample standard deviation (None for a single value) over seeds."""
    numbers = list(values.values())
    spread = stdev(numbers) if len(numbers) > 1 else None
    return dict(mean=fmean(numbers), std=spread, seeds={str(seed): value for seed, value in values.items()})


def differences(values: Seeds, base: Seeds) -> dict[str, Any] | None:
    """``values`` minus ``base``, seed by seed: mean, spread, and how many are positive; None without common seeds.

    Trainings with the same seed share data order and augmentation, so these do not add to the spread of the difference.
    """
    paired = {seed: value - base[seed] for seed, value in values.items() if seed in base}
    if not paired:
        return None
    return dict(**summarize(paired), better=sum(value > 0 for value in paired.values()))


def collect(
    trainings: Trainings,
    tasks: Sequence[str],
    skipped: Mapping[str, str],
    failed: Mapping[str, JobFailed],
    command: str,
) -> dict[str, Any]:
    """Build the report of the ``tasks`` that were run; ``skipped``: task → reason; ``failed``: key of a training → reason."""
    planned = trainings.plan(list(tasks))
    records = {training: record for training in planned if (record := trainings.record(training))}
    return dict(
        version=__version__,
        software=software(),
        command=command,
        settings={**asdict(trainings.settings), 'seeds': trainings.suite.seeds},
        starts={name: asdict(start) for name, start in trainings.starts.items()},
        tasks={
            name: dict(
                config=str(task.config),
                scratch=str(task.scratch or task.config),
                metrics=[metric.label for metric in task.kind.metrics],
                skipped=skipped.get(name),
                scores=summaries(trainings, name, records) if name in tasks else {},
            )
            for name, task in trainings.suite.tasks.items()
        },
        jobs=[entry(trainings, training, records.get(training), failed) for training in planned],
        seconds=round(sum(record.seconds for record in records.values()), 1),
    )


def summaries(trainings: Trainings, task: str, records: Mapping[Training, Record]) -> dict[str, Any]:
    """Metric → start → mean, spread, seeds, and the difference to the reference."""
    against = trainings.settings.against
    found: dict[str, Any] = {}
    for metric in trainings.suite.tasks[task].kind.metrics:
        by_start: dict[str, dict[int, float]] = {start: {} for start in trainings.starts}
        for training, record in records.items():
            if training.task == task:
                by_start[training.start][training.seed] = record.value['scores'][metric.label]
        found[metric.label] = {
            start: dict(
                **summarize(values),
                difference=differences(values, by_start[against]) if against and start != against else None,
            )
            for start, values in by_start.items()
            if values
        }
    return found


def entry(
    trainings: Trainings, training: Training, record: Record | None, failed: Mapping[str, JobFailed]
) -> dict[str, Any]:
    """Everything about one training."""
    rows, key = trainings.rows(training), trainings.key(training)
    failure = failed.get(key)
    losses = [[row['iter'], row['loss']] for row in rows if row['mode'] == 'train' and row.get('loss') is not None]
    curves = {'loss': thinned(losses)}
    for metric in trainings.suite.tasks[training.task].kind.metrics:
        scores = [(row['iter'], row.get(metric.key)) for row in rows if row['mode'] == 'val']
        curves[metric.label] = [[iteration, score * metric.scale] for iteration, score in scores if score is not None]
    return dict(
        **asdict(training),
        key=key,
        command=shlex.join(trainings.command(training)),
        **(dict(**record.value, seconds=round(record.seconds, 1)) if record else {}),
        failed=dict(reason=failure.reason, log=failure.log, lines=failure.lines) if failure else None,
        curves=curves,
    )


def thinned(points: list[list[float]]) -> list[list[float]]:
    """About ``POINTS`` of the points at most, evenly spaced, including the last."""
    step = -(-len(points) // POINTS)
    return points[: -1 : step or 1] + points[-1:]
