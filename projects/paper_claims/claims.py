"""The papers' claims, as comparisons of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

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


def stage(number: int) -> tuple[str, ...]:
    """Return the networks of a stage, one for each teacher 0."""
    return tuple(f'{init}-{number}' for init in INITS)


def single(text: str, first: str, second: str, *, margin: float | None = None, decides: bool = True) -> Comparison:
    """Compare one network with another."""
    return Comparison(text, (first,), (second,), margin=margin, decides=decides)


CLAIMS = (
    Claim(
        1,
        'After two stages, scores depend less on the initial teacher',
        'dBOT, Table 1: standard deviation over five initial teachers 2.24 (teachers 0), 0.37 (students 1), 0.07 (students 2)',
        'The spread is the standard deviation of the scores, means over draws, over the four initial teachers.',
        (
            Comparison('spread of teachers 0 − spread of students 2', stage(0), stage(2), stdev),
            Comparison('spread of teachers 0 − spread of students 1', stage(0), stage(1), stdev, decides=False),
            Comparison('spread of students 1 − spread of students 2', stage(1), stage(2), stdev, decides=False),
        ),
    ),
    Claim(
        2,
        'Students are better than their teachers',
        'dBOT, Table 1: every student 1 is better than its teacher 0, and every student 2 but one better than its student 1',
        'The supervised teacher was trained on all 1,440 labels, but fine-tuning uses only a few of them; in the paper '
        'both use the same labels. The students are pre-trained without labels.',
        (
            Comparison('students 1 − teachers 0, mean of all four', stage(1), stage(0)),
            Comparison('students 2 − students 1, mean of all four', stage(2), stage(1)),
            *(single(f'{init}: student 1 − teacher 0', f'{init}-1', f'{init}-0', decides=False) for init in INITS),
            *(single(f'{init}: student 2 − student 1', f'{init}-2', f'{init}-1', decides=False) for init in INITS),
        ),
    ),
    Claim(
        3,
        'Re-initialising the student beats keeping its weights',
        'dBOT, Table 5: 84.5 with re-initialisation, 84.2 without',
        'Both runs start from the random teacher and share the first stage. A student is far from converged after such a short '
        'stage, and a student that keeps its weights is trained for two stages.',
        (single('student 2: re-initialised − weights kept', 'random-2', 'kept-2'),),
    ),
    Claim(
        4,
        'DMAE with a masking ratio of 0.90 stays within a point of 0.75, and is better than MAE after equal epochs',
        'DMAE: a ratio of 0.90 costs no accuracy; 84.0 against 81.6 of MAE after 100 epochs',
        'The teacher, MAE on normalised pixels, has the size and the epochs of the student; in the paper it is larger and '
        'was trained for longer. With a ratio of 0.90, 3 of 36 patches are visible; with 0.75, 9.',
        (
            single('DMAE 0.90 − DMAE 0.75, to lie within ± 1', 'dmae-0.90', 'dmae-0.75', margin=1.0),
            single('DMAE 0.90 − MAE (raw pixels, as DMAE)', 'dmae-0.90', 'mae-raw'),
            single('DMAE 0.75 − MAE (raw pixels, as DMAE)', 'dmae-0.75', 'mae-raw', decides=False),
        ),
    ),
    Claim(
        5,
        'Hybrid Distill with relations (α = 1) is better than plain distillation (α = 0)',
        'Hybrid Distill, with DeiT and MAE as teachers: AP-box 50.0 against 47.5',
        'The paper measures detection; this experiment measures classification. The supervised teacher was trained on all '
        'labels.',
        (single('α = 1 − α = 0', 'hybrid-alpha1', 'hybrid-alpha0'),),
    ),
    Claim(
        6,
        'Normalised targets are better than raw ones',
        'MAE: normalised pixels; MaskDistill, ablation of the normalisation, with a DINO teacher: 84.3 raw, 84.5 normalised',
        'All runs have one stage. The contrastive teacher takes the place of DINO; everything else is as in dBOT.',
        (
            single('MAE: normalised − raw pixels', 'mae-0', 'mae-raw'),
            single(
                'dBOT from the contrastive teacher: standardised − raw features', 'contrastive-1', 'raw-contrastive-1'
            ),
        ),
    ),
)
