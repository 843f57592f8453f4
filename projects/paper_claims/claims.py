"""The papers' claims, as comparisons of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from projects.paper_claims.recipes import INITS

Scores = Mapping[str, float]  # network → its score for one seed


@dataclass(frozen=True)
class Comparison:
    """A difference between two groups of networks, computed for each pre-training seed.

    Attributes:
        text: Description.
        first: Networks that the claim says are better.
        second: Networks that they are compared with.
        statistic: Applied to the scores of each group; the value of the comparison is first minus second.
        margin: None if the claim is that the value is above zero; else that it is within ± margin.
        decides: Whether the claim's verdict depends on it; other comparisons only show details.
    """

    text: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    statistic: Callable[..., float] = fmean
    margin: float | None = None
    decides: bool = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Return all networks that are compared."""
        return self.first + self.second

    def value(self, scores: Scores) -> float:
        """Return first minus second, in the unit of the scores."""
        first, second = ([scores[name] for name in side] for side in (self.first, self.second))
        return self.statistic(first) - self.statistic(second)


@dataclass(frozen=True)
class Claim:
    """A claim. It holds if all its deciding comparisons hold, and fails if one of them fails.

    Attributes:
        number: On the command line.
        title: The claim.
        source: Paper and figures.
        note: How the experiment differs from the paper.
        comparisons: What is measured.
    """

    number: int
    title: str
    source: str
    note: str
    comparisons: tuple[Comparison, ...]

    @property
    def networks(self) -> tuple[str, ...]:
        """Return all networks that are compared, each once."""
        return tuple(dict.fromkeys(name for comparison in self.comparisons for name in comparison.networks))


def stage(number: int, inits: Sequence[str] = INITS) -> tuple[str, ...]:
    """Return the networks of a stage, one for each teacher 0."""
    return tuple(f'{init}-{number}' for init in inits)


def single(text: str, first: str, second: str, *, margin: float | None = None, decides: bool = True) -> Comparison:
    """Compare one network with another."""
    return Comparison(text, (first,), (second,), margin=margin, decides=decides)
