"""From scores to verdicts: confidence intervals over pre-training seeds, and whether each claim holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from projects.paper_claims.bench import Bench
from projects.paper_claims.claims import Claim, Comparison

HOLDS, FAILS, UNDECIDED = 'holds', 'fails', 'undecided'
LEVEL, POWER = 0.05, 0.8
MOST_SEEDS = 1000  # beyond which a difference is not worth deciding

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


def p_value(values: Sequence[float], margin: float | None = None) -> float:
    """Compute the p-value of the verdict that the mean's side asks for; below 0.05 the 95 % interval gives it too.

    Without a margin it is that of the two-sided t-test against zero; with one, that of the test against the nearer end of
    ± margin, whichever side the mean is on.
    """
    count, mean = len(values), fmean(values)
    error = max(float(stats.sem(values)), 1e-12)

    def beyond(edge: float) -> float:
        return float(2 * stats.t.sf(abs(mean - edge) / error, count - 1))

    if margin is None:
        return beyond(0.0)
    return max(beyond(-margin), beyond(margin))


def holm(values: Sequence[float], family: int) -> list[float]:
    """Adjust p-values by Holm's method: rejecting those below 0.05 gives a false verdict in one family of twenty at most.

    ``family`` is the number of comparisons that were planned; those that were not run count as undecided.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        largest = max(largest, min(1.0, (family - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def seeds_needed(effect: float, level: float) -> int | None:
    """Return how many seeds decide a mean of ``effect`` deviations with a power of 0.8; None for over ``MOST_SEEDS``."""
    for count in range(2, MOST_SEEDS + 1):
        critical = stats.t.ppf(1 - level / 2, count - 1)
        if stats.nct.sf(critical, count - 1, effect * count**0.5) >= POWER:
            return count
    return None


def judge(bench: Bench, claims: Sequence[Claim], scores: Scores) -> list[dict[str, Any]]:
    """Evaluate all comparisons of the claims under every measure; a verdict of each claim for each measure."""
    rows = {
        (claim.number, comparison.text): {name: compare(comparison, scores[name]) for name in bench.measures}
        for claim in claims
        for comparison in claim.comparisons
    }
    if bench.corrected:
        correct(bench, claims, rows)
    return [judged(bench, claim, rows) for claim in claims]


def correct(bench: Bench, claims: Sequence[Claim], rows: Mapping[tuple[int, str], dict[str, dict[str, Any]]]) -> None:
    """Judge each measure's deciding comparisons as one family, by Holm's method, and the others by their intervals."""
    family = [(claim.number, row.text) for claim in claims for row in claim.comparisons if row.decides]
    margins = {(claim.number, row.text): row.margin for claim in claims for row in claim.comparisons}
    for measure in bench.measures:
        adjusted = holm([rows[key][measure]['p'] for key in family], bench.family)
        for key, p in zip(family, adjusted, strict=True):
            found = rows[key][measure]
            margin, seeds = margins[key], found['seeds']
            found['adjusted'] = round(p, 6)
            inside = found['mean'] > 0 if margin is None else abs(found['mean']) < margin
            found['verdict'] = UNDECIDED if p >= LEVEL else HOLDS if inside else FAILS
            if found['verdict'] == UNDECIDED:
                distance = abs(found['mean'] if margin is None else margin - abs(found['mean']))
                found['needed'] = seeds_needed(distance / max(stdev(seeds), 1e-12), LEVEL / bench.family)


def judged(bench: Bench, claim: Claim, rows: Mapping[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
    """Collect a claim's comparisons and its verdicts."""
    comparisons = [
        dict(text=row.text, margin=row.margin, decides=row.decides, measures=rows[claim.number, row.text])
        for row in claim.comparisons
    ]
    deciding = [row['measures'] for row in comparisons if row['decides']]
    verdicts = {measure: combine([row[measure]['verdict'] for row in deciding]) for measure in bench.measures}
    about = dict(number=claim.number, title=claim.title, source=claim.source, note=claim.note)
    return dict(**about, verdict=verdicts[bench.deciding], verdicts=verdicts, comparisons=comparisons)


def compare(comparison: Comparison, networks: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Evaluate a comparison for each seed, averaging over draws; return the values, mean, interval and verdict."""
    seeds = range(len(networks[comparison.first[0]]))
    values = [comparison.value({name: fmean(networks[name][seed]) for name in comparison.networks}) for seed in seeds]
    interval = t_interval(values)
    rounded = {name: round(value, 3) for name, value in asdict(interval).items()}
    p = round(p_value(values, comparison.margin), 6)
    seeds_found = [round(value, 3) for value in values]
    return dict(seeds=seeds_found, **rounded, p=p, verdict=verdict(interval, comparison.margin))
