"""The report: scores, grid, curves and linear segmentors of finished runs, and the verdicts."""

from __future__ import annotations

from dataclasses import asdict
from statistics import fmean
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
    values = {run: experiment.value(run) for run in runs if run.kind != 'pretrain'}
    spent = {run: experiment.store.spent(experiment.key(run)) for run in runs}
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
        worker_minutes=round(sum(spent.values()) / 60, 1),
        minutes=minutes(spent),
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


def minutes(spent: dict[Run, float]) -> dict[str, list[float]]:
    """Return number of jobs and mean minutes of each kind of run, from the seconds of each."""
    kinds: dict[str, list[float]] = {}
    for run, seconds in spent.items():
        kind = ' '.join(filter(None, (run.kind, run.name if run.kind == 'pretrain' else run.task)))
        kinds.setdefault(kind, []).append(seconds)
    return {kind: [len(found), round(fmean(found) / 60, 2)] for kind, found in kinds.items()}
