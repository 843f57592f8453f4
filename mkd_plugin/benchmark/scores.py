"""From the numbers of each training to means, spreads and differences: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from mkd_plugin.benchmark.suites import Metric

Row = Mapping[str, Any]
Seeds = Mapping[int, float]  # seed → score


def final_scores(rows: Sequence[Row], metrics: Sequence[Metric]) -> dict[str, float]:
    """The scores of a training, in per cent: those of its last validation, by label.

    Beside ``metrics`` everything else that the evaluator gave is there, by its own name and in its own unit.

    Raises:
        ValueError: There was no validation, or it did not give a metric.
    """
    if not rows or rows[-1]['mode'] != 'val':
        raise ValueError('it did not end with a validation')
    last = {name: value for name, value in rows[-1].items() if name not in ('mode', 'iter', 'epoch')}
    scores = {}
    for metric in metrics:
        value = last.pop(metric.key, None)
        if value is None and metric.absent is None:
            raise ValueError(f'its validation gave no {metric.key}, but {sorted(last)}')
        scores[metric.label] = metric.absent if value is None else round(value * metric.scale, 6)
    return {**scores, **last}


def summarize(values: Seeds) -> dict[str, Any]:
    """Mean and sample standard deviation (None for a single value) over seeds."""
    numbers = list(values.values())
    spread = stdev(numbers) if len(numbers) > 1 else None
    return dict(mean=fmean(numbers), std=spread, seeds={str(seed): value for seed, value in values.items()})


def differences(values: Seeds, base: Seeds) -> dict[str, Any] | None:
    """Seed by seed, ``values`` minus ``base``: mean, spread, and of how many seeds it is above zero; None without any.

    Trainings of a seed share data order and augmentation, so their difference is not blurred by these.
    """
    paired = {seed: value - base[seed] for seed, value in values.items() if seed in base}
    if not paired:
        return None
    return dict(**summarize(paired), better=sum(value > 0 for value in paired.values()))
