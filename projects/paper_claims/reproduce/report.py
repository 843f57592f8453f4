"""From scores to a report: every number of the page, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import mkd_plugin
from reproduce.claims import Claim, Comparison
from reproduce.jobs import Experiment, Job
from reproduce.statistics import combine, t_interval, verdict

__all__ = ['MEASURES', 'collect', 'judge']

MEASURES = {'finetuned': 'fine-tuned', 'probe': 'linear probe', 'knn': 'k-NN'}
DECIDING = 'finetuned'  # what the papers report

Scores = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]  # measure → network → seed → draw (or the one value)


def collect(experiment: Experiment, claims: Sequence[Claim]) -> dict[str, Any]:
    """The report of finished jobs.

    Raises:
        ValueError: A job is not finished.
    """
    networks = dict.fromkeys(name for claim in claims for name in claim.networks)
    jobs = experiment.plan(networks)
    results = {job: experiment.result(job) for job in jobs}
    missing = [job for job, result in results.items() if result is None]
    if missing:
        raise ValueError(
            f'{len(missing)} jobs are not finished, the first is: {missing[0]}. Run the same command again.'
        )
    seeds, draws = range(experiment.settings.seeds), range(experiment.settings.draws)

    def score(measure: str, network: str, seed: int) -> list[float]:
        if measure == 'finetuned':
            of_seed = [Job('finetune', network, seed, draw) for draw in draws]
        else:
            of_seed = [Job('measure', network, seed)]
        return [round(results[job][measure], 3) for job in of_seed]  # type: ignore[index]

    scores = {
        measure: {name: [score(measure, name, seed) for seed in seeds] for name in networks} for measure in MEASURES
    }
    seconds = sum(result['seconds'] for result in results.values() if result is not None)
    return dict(
        version=mkd_plugin.__version__,
        settings=asdict(experiment.settings),
        jobs=len(jobs),
        worker_minutes=round(seconds / 60, 1),
        scores=scores,
        claims=[judge(claim, scores) for claim in claims],
    )


def judge(claim: Claim, scores: Scores) -> dict[str, Any]:
    """Every comparison of a claim under every measure, and its verdict for each measure."""
    rows = [
        dict(
            text=comparison.text,
            margin=comparison.margin,
            decides=comparison.decides,
            measures={measure: compare(comparison, scores[measure]) for measure in MEASURES},
        )
        for comparison in claim.comparisons
    ]
    verdicts = {
        measure: combine([row['measures'][measure]['verdict'] for row in rows if row['decides']])
        for measure in MEASURES
    }
    about = dict(number=claim.number, title=claim.title, source=claim.source, note=claim.note)
    return dict(**about, verdict=verdicts[DECIDING], verdicts=verdicts, comparisons=rows)


def compare(comparison: Comparison, networks: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """The value for each seed, from the averages over its draws; mean, interval and verdict."""
    seeds = range(len(networks[comparison.first[0]]))
    values = [comparison.value({name: fmean(networks[name][seed]) for name in comparison.networks}) for seed in seeds]
    interval = t_interval(values)
    rounded = {name: round(value, 3) for name, value in asdict(interval).items()}
    return dict(seeds=[round(value, 3) for value in values], **rounded, verdict=verdict(interval, comparison.margin))
