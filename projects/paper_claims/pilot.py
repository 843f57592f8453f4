"""A pilot on Fashion-MNIST with seeds of its own: how much differences scatter, and how many seeds decide one."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from statistics import fmean, variance
from typing import Any

from projects.paper_claims.claims import Claim, single
from projects.paper_claims.fashion import BENCH, FULL, TUNINGS
from projects.paper_claims.verdicts import LEVEL, seeds_needed

# Pairs that share a teacher or nothing, early and late: cheap to train, and of every kind that the claims have.
PAIRS = (('mae-0', 'mae-raw'), ('random-1', 'random-2'), ('random-1', 'mae-0'), ('supervised-0', 'mae-0'))
FEW = {'finetuned-100': TUNINGS['finetuned-100'], 'finetuned-10': replace(TUNINGS['finetuned-10'], draws=2)}
PILOT = replace(
    BENCH,
    full=replace(FULL, seeds=3, first_seed=100, finetunings=FEW),
    measures={name: title for name, title in BENCH.measures.items() if name != 'finetuned-all'},
    claims=(Claim(0, 'pilot', '', '', tuple(single(f'{a} − {b}', a, b) for a, b in PAIRS)),),
    corrected=False,
)
EFFECTS = (0.5, 1.0, 2.0)  # points


def power_table(report: dict[str, Any]) -> dict[str, Any]:
    """For each measure, the scatter of a difference over seeds (pooled over pairs), and the seeds that decide an effect.

    The level is Bonferroni's for all deciding comparisons, which Holm's method never exceeds; the power is 0.8.
    """
    rows = report['claims'][0]['comparisons']
    table = {}
    for measure in rows[0]['measures']:
        spread = sqrt(fmean(variance(row['measures'][measure]['seeds']) for row in rows))
        seeds = {str(effect): seeds_needed(effect / spread, LEVEL / BENCH.family) for effect in EFFECTS}
        table[measure] = dict(deviation=round(spread, 3), seeds=seeds)
    return table
