"""The rule of the plan: whether a start gains over scratch by more than twice the spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from projects.dense_gains.data import MEASURES
from projects.dense_gains.recipes import MASKED, SCRATCH
from projects.paper_claims.verdicts import t_interval

GAIN, LOSS, WITHIN = 'gain', 'loss', 'within the spread'
TIMES = 2.0  # spreads that a gain must exceed

Scores = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]  # split → measure → start → seeds


def compare(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Compare a start with scratch, seed by seed: differences, mean, spread, 95 % interval and verdict."""
    differences = [round(a - b, 3) for a, b in zip(first, second, strict=True)]
    mean, spread, interval = fmean(differences), stdev(differences), t_interval(differences)
    verdict = GAIN if mean > TIMES * spread else LOSS if mean < -TIMES * spread else WITHIN
    rounded = dict(mean=mean, spread=spread, low=interval.low, high=interval.high)
    return dict(seeds=differences, **{name: round(value, 3) for name, value in rounded.items()}, verdict=verdict)


def judge(scores: Scores) -> dict[str, Any]:
    """Compare all starts with scratch on the test scenes; name each task's best masked pre-training, and its verdicts.

    The best is that with the highest mean on the split 'val', where the settings were chosen, so that no test score chooses
    what is tested. ``reached`` says whether all three measures gain.
    """
    compared: dict[str, dict[str, Any]] = {}
    best: dict[str, str] = {}
    for task, measures in MEASURES.items():
        own = {name: scores['test'][name] for name in measures}
        starts = next(iter(own.values()))
        for name, by_start in own.items():
            compared[name] = {
                start: compare(seeds, by_start[SCRATCH]) for start, seeds in by_start.items() if start != SCRATCH
            }
        candidates = [start for start in MASKED if start in starts]
        best[task] = max(candidates, key=lambda start: fmean(fmean(scores['val'][name][start]) for name in measures))
    verdicts = {name: compared[name][best[task]]['verdict'] for task, measures in MEASURES.items() for name in measures}
    return dict(compared=compared, best=best, verdicts=verdicts, reached=set(verdicts.values()) == {GAIN})
