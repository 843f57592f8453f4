"""What differs between the experiments: images, settings, claims, pre-trainings, and how claims are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from projects.paper_claims.claims import Claim, Comparison
from projects.paper_claims.data import Images
from projects.paper_claims.recipes import Recipe
from projects.paper_claims.settings import Settings


@dataclass(frozen=True)
class Bench:
    """An experiment."""

    name: str  #: On the command line
    page: str  #: Name of its page in docs/, and of the folder with its numbers and figures
    images: Images
    full: Settings
    smoke: Settings  #: Tiny, to test the program
    claims: tuple[Claim, ...]
    recipes: Mapping[str, Recipe]
    measures: Mapping[str, str]  #: Measure → its name on the page
    deciding: str  #: The measure whose verdicts are the claims'
    corrected: bool  #: Whether intervals are judged with Holm's correction for the number of deciding comparisons
    watched: Mapping[str, str]  #: Values of a frozen network that are reported and not judged
    taught: tuple[Comparison, ...] = ()  #: Students and their teachers, whose watched values are compared
    resolved: float = 0.0  #: Points below which a decided difference is decided for these test images only

    def __reduce__(self) -> tuple[Callable[[str], Bench], tuple[str]]:
        """Pickle the name: recipes have functions that no worker process could unpickle."""
        return bench_named, (self.name,)

    @property
    def family(self) -> int:
        """Number of the deciding comparisons, for which verdicts are corrected."""
        return sum(row.decides for claim in self.claims for row in claim.comparisons)

    def recipe_of(self, network: str) -> str:
        """Return the name of the pre-training that writes a network. Raises ValueError if there is no such network."""
        for name, recipe in self.recipes.items():
            if network in recipe.networks:
                return name
        known = sorted(found for recipe in self.recipes.values() for found in recipe.networks)
        raise ValueError(f'There is no network {network!r}. Networks are {known}.')

    def chosen(self, numbers: Iterable[int]) -> list[Claim]:
        """Return the claims of these numbers."""
        wanted = set(numbers)
        return [claim for claim in self.claims if claim.number in wanted]

    def left_out(self, report: Mapping[str, Any]) -> list[str]:
        """Return the claims and seeds of the plan that a report lacks."""
        reported = {claim['number'] for claim in report['claims']}
        seeds = range(report['settings']['seeds'], self.full.seeds)
        return [
            *(f'claim {claim.number}' for claim in self.claims if claim.number not in reported),
            *(f'seed {seed}' for seed in seeds),
        ]

    def is_planned(self, report: Mapping[str, Any]) -> bool:
        """Whether a report is of the whole experiment with the settings of the plan."""
        return not self.left_out(report) and report['settings'] == asdict(self.full)


def bench_named(name: str) -> Bench:
    """Import an experiment."""
    found: Bench = import_module(f'projects.paper_claims.{name}').BENCH
    return found
