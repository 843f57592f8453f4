"""Intervals and verdicts: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t

__all__ = ['Interval', 'combine', 'reach', 'standard_deviation', 't_interval', 'verdict']

HOLDS, FAILS, UNDECIDED = 'holds', 'fails', 'undecided'


@dataclass(frozen=True)
class Interval:
    """A mean with a confidence interval."""

    mean: float
    low: float
    high: float


def standard_deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n − 1)."""
    return stdev(values)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values, here one value for each pre-training seed.

    Draws of labels within a seed share a network, so they are no independent evidence: they are averaged first. With
    different draws for every seed, a seed's average is one observation whose variance holds both parts, that of the seed
    and that of the draws, and this interval is the exact one of a balanced random-effects model.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f'{len(values)} value: an interval needs at least two pre-training seeds.')
    mean, half = fmean(values), reach(len(values), confidence) * stdev(values)
    return Interval(mean, mean - half, mean + half)


def reach(count: int, confidence: float = 0.95) -> float:
    """Half of the interval's width, in standard deviations of the values."""
    return float(student_t.ppf((1 + confidence) / 2, count - 1)) / count**0.5


def verdict(interval: Interval, margin: float | None = None) -> str:
    """Whether a claim holds, fails, or cannot be told.

    Args:
        interval: Of the difference.
        margin: None for the claim that it is above zero; else for the claim that it lies within ± margin.
    """
    low, high = (0.0, float('inf')) if margin is None else (-margin, margin)
    if low < interval.low and interval.high < high:
        return HOLDS
    return FAILS if interval.high < low or interval.low > high else UNDECIDED


def combine(verdicts: Sequence[str]) -> str:
    """Of a claim with several comparisons: it fails if one does, and holds if all do."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) == {HOLDS} else UNDECIDED
