"""The report: scores, grid, curves and linear segmentors of finished runs, and the verdicts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import mkd_plugin
from projects.dense_gains.data import MEASURES
from projects.dense_gains.experiment import Experiment, Run
from projects.dense_gains.settings import TASKS
from projects.dense_gains.verdicts import judge

SPLITS = ('train', 'val', 'test')


def collect(experiment: Experiment) -> dict[str, Any]:
    """Collect all results and judge them. Raises ValueError if a run is not finished."""
    runs = dict.fromkeys([*experiment.grid('short'), *experiment.grid('long'), *experiment.finals()])
    values = {run: experiment.value(run) for run in runs}
    records = [experiment.store.read(experiment.key(run)) for run in runs]
    seeds, starts = range(experiment.settings.seeds), experiment.starts

    def final(start: str, task: str, seed: int) -> Any:
        return values[Run('final', start, seed, task, experiment.chosen(start, task))]

    scores = {
        split: {
            name: {start: [final(start, task, seed)[split][name] for seed in seeds] for start in starts}
            for task, names in MEASURES.items()
            for name in names
        }
        for split in SPLITS
    }
    return dict(
        version=mkd_plugin.__version__,
        settings=asdict(experiment.settings),
        jobs=len(runs),
        worker_minutes=round(sum(record.seconds for record in records if record) / 60, 1),
        minutes=minutes(experiment, list(runs)),
        grid={task: {start: grid_of(experiment, start, task, values) for start in starts} for task in TASKS},
        chosen={task: {start: asdict(experiment.chosen(start, task)) for start in starts} for task in TASKS},
        scores=scores,
        curves={
            task: {start: [final(start, task, seed)['curves'] for seed in seeds] for start in starts} for task in TASKS
        },
        losses={
            task: {start: [final(start, task, seed)['losses'] for seed in seeds] for start in starts} for task in TASKS
        },
        frozen={start: [values[Run('frozen', start, seed)] for seed in seeds] for start in starts},
        verdict=judge(scores),
    )


def grid_of(experiment: Experiment, start: str, task: str, values: dict[Run, Any]) -> list[dict[str, Any]]:
    """Return all settings that were tried for a start, with their scores on the split 'val'."""
    tried = [*experiment.settings.grid(task), experiment.extended(start, task)]
    return [dict(asdict(one), **values[Run('tune', start, 0, task, one)]['val']) for one in tried]


def minutes(experiment: Experiment, runs: list[Run]) -> dict[str, list[float]]:
    """Return number of jobs and mean minutes of each kind of run."""
    found: dict[str, list[float]] = {}
    for run in runs:
        record = experiment.store.read(experiment.key(run))
        assert record is not None
        kind = ' '.join(filter(None, (run.kind, run.name if run.kind == 'pretrain' else run.task)))
        count, mean = found.get(kind, [0, 0.0])
        found[kind] = [count + 1, round((mean * count + record.seconds / 60) / (count + 1), 2)]
    return found
