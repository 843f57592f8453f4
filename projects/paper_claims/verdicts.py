"""From scores to verdicts: confidence intervals over pre-training seeds, and whether each claim holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from scipy import stats

from projects.paper_claims.claims import Claim, Comparison

MEASURES = {'finetuned': 'fine-tuned', 'probe': 'linear probe', 'knn': 'k-NN'}
DECIDING = 'finetuned'  # the measure that the papers report
HOLDS, FAILS, UNDECIDED = 'holds', 'fails', 'undecided'

Scores = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]  # measure → network → seed → draw (or the one value)


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute Student's interval of the mean of independent values, here one value per pre-training seed.

    Draws of labels within a seed share a network and are not independent: average them first. With different draws for
    every seed, the variance of a seed's average has both components, that of the seed and that of the draws, and the
    interval is exact for a balanced random-effects model.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f'{len(values)} value: an interval needs at least two pre-training seeds.')
    mean, half = fmean(values), quantile(len(values), confidence) * float(stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def quantile(count: int, confidence: float = 0.95) -> float:
    """Return the half width of the interval of ``count`` values in standard errors of their mean."""
    return float(stats.t.ppf((1 + confidence) / 2, count - 1))


def verdict(interval: Interval, margin: float | None = None) -> str:
    """Decide whether a comparison holds, fails, or is undecided.

    Args:
        interval: Of the difference.
        margin: None for the claim that the difference is above zero; else for the claim that it is within ± margin.
    """
    low, high = (0.0, float('inf')) if margin is None else (-margin, margin)
    if low < interval.low and interval.high < high:
        return HOLDS
    return FAILS if interval.high < low or interval.low > high else UNDECIDED


def combine(verdicts: Sequence[str]) -> str:
    """Combine the verdicts of several comparisons: the claim fails if one of them fails, and holds if all hold."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) == {HOLDS} else UNDECIDED


def judge(claim: Claim, scores: Scores) -> dict[str, Any]:
    """Evaluate all comparisons of a claim under every measure, and give a verdict for each measure."""
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
    """Evaluate a comparison for each seed, averaging over draws; return the values, mean, interval and verdict."""
    seeds = range(len(networks[comparison.first[0]]))
    values = [comparison.value({name: fmean(networks[name][seed]) for name in comparison.networks}) for seed in seeds]
    interval = t_interval(values)
    rounded = {name: round(value, 3) for name, value in asdict(interval).items()}
    return dict(seeds=[round(value, 3) for value in values], **rounded, verdict=verdict(interval, comparison.margin))
