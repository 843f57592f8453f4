"""projects/paper_claims: intervals, p-values, corrections, verdicts, and the seeds that decide a difference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from projects.paper_claims import fashion, pilot, verdicts
from projects.paper_claims.settings import settings_of

DOCS = Path(__file__).parents[3] / 'docs'


def test_t_interval__is_scipys():
    values = [1.5, 2.25, 0.5, 1.0]
    found = verdicts.t_interval(values)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((1.3125, wanted.low, wanted.high))


def test_t_interval__covers_at_its_level_where_pooling_draws_does_not():
    random = np.random.default_rng(0)
    seeds = random.normal(size=(1000, 3, 1))  # each experiment: 3 seeds, 10 draws of twice their spread
    draws = 0.4 + seeds + 2 * random.normal(size=(1000, 3, 10))

    def coverage(samples):
        intervals = [verdicts.t_interval(list(sample)) for sample in samples]
        return np.mean([interval.low < 0.4 < interval.high for interval in intervals])

    assert 0.93 < coverage(draws.mean(axis=2)) < 0.97
    assert coverage(draws.reshape(1000, 30)) < 0.85


def test_t_interval__one_seed_is_refused():
    with pytest.raises(ValueError, match='at least two'):
        verdicts.t_interval([1.0])


@pytest.mark.parametrize(
    ('low', 'high', 'margin', 'wanted'),
    [
        (0.1, 3.0, None, 'holds'), (-3.0, -0.1, None, 'fails'), (-0.1, 3.0, None, 'undecided'), (0.0, 3.0, None, 'undecided'),
        (-0.9, 0.9, 1.0, 'holds'), (1.1, 2.0, 1.0, 'fails'), (-2.0, -1.1, 1.0, 'fails'), (-1.1, 0.5, 1.0, 'undecided'),
        (-2.0, 2.0, 1.0, 'undecided'),
    ],
)  # fmt: skip
def test_verdict__side_of_the_interval(low, high, margin, wanted):
    assert verdicts.verdict(verdicts.Interval((low + high) / 2, low, high), margin) == wanted


@pytest.mark.parametrize(
    ('found', 'wanted'),
    [(['holds', 'holds'], 'holds'), (['holds', 'undecided'], 'undecided'), (['undecided', 'fails', 'holds'], 'fails')],
)
def test_combine__all_must_hold(found, wanted):
    assert verdicts.combine(found) == wanted


def test_holm__adjusts_as_published():
    # Holm (1979): the k-th smallest of m p-values times m − k + 1, never below an earlier one
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([0.5, 0.9], 2) == [1.0, 1.0]
    with_two_undecided = verdicts.holm([0.01, 0.04, 0.03, 0.005, 1.0, 1.0], 6)
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005], 6) == pytest.approx(with_two_undecided[:4])


def test_judge__some_claims_alone_are_corrected_for_all_that_were_planned():
    stored = json.loads((DOCS / 'fashion/report.json').read_text())
    (alone,) = verdicts.judge(fashion.BENCH, fashion.BENCH.chosen([8]), stored['scores'])
    for measure in fashion.BENCH.measures:
        found = [row['measures'][measure] for row in alone['comparisons'] if row['decides']]
        smallest = min(found, key=lambda one: one['p'])
        assert smallest['adjusted'] == pytest.approx(min(1.0, 15 * smallest['p']), abs=1e-5)


@pytest.mark.parametrize('margin', [None, 1.0])
def test_p_value__decides_as_the_interval(margin):
    random = np.random.default_rng(0)
    for _ in range(300):
        values = list(random.normal(random.uniform(-3, 3), random.uniform(0.1, 2), size=4))
        decided = verdicts.verdict(verdicts.t_interval(values), margin) != 'undecided'
        assert decided == (verdicts.p_value(values, margin) < 0.05)


def test_seeds_needed__is_the_power_of_simulated_tests():
    count = verdicts.seeds_needed(1.2, 0.05)
    random = np.random.default_rng(0)

    def power(size):
        return np.mean(stats.ttest_1samp(random.normal(1.2, 1, size=(20_000, size)), 0, axis=1).pvalue < 0.05)

    assert power(count) > 0.79 and power(count - 1) < 0.81
    assert verdicts.seeds_needed(0.0, 0.05) is None


def test_judge__corrected_verdicts_are_never_bolder_than_the_interval():
    random = np.random.default_rng(0)
    names = {name for claim in fashion.CLAIMS for name in claim.networks}
    scores = {
        measure: {name: [[random.normal(80, 1)] for _ in range(6)] for name in sorted(names)}
        for measure in fashion.BENCH.measures
    }
    for seed in range(6):
        scores['probe']['maskdistill'][seed] = [85.0 + 0.1 * seed]
    found = verdicts.judge(fashion.BENCH, fashion.CLAIMS, scores)
    rows = [row for claim in found for row in claim['comparisons'] if row['decides']]
    for row in rows:
        for cell in row['measures'].values():
            plain = verdicts.verdict(verdicts.Interval(cell['mean'], cell['low'], cell['high']), row['margin'])
            assert cell['verdict'] in (plain, 'undecided') and cell['adjusted'] >= cell['p']
            assert ('needed' in cell) == (cell['verdict'] == 'undecided')
    assert next(claim for claim in found if claim['number'] == 8)['verdict'] == 'holds'


def test_power_table__is_of_the_pooled_scatter_of_all_pairs():
    random = np.random.default_rng(0)
    names = {name for claim in pilot.PILOT.claims for name in claim.networks}
    scores = {
        measure: {name: [[random.normal(80, 0.5)] for _ in range(2000)] for name in sorted(names)}
        for measure in pilot.PILOT.measures
    }
    report = dict(claims=verdicts.judge(pilot.PILOT, pilot.PILOT.claims, scores))
    family = sum(row.decides for claim in fashion.CLAIMS for row in claim.comparisons)
    assert family == fashion.BENCH.family == 15
    for found in pilot.power_table(report).values():
        assert found['deviation'] == pytest.approx(0.5 * 2**0.5, rel=0.05)  # of a difference of two networks
        for effect, seeds in found['seeds'].items():
            assert seeds == pytest.approx(verdicts.seeds_needed(float(effect) / 0.5**0.5, 0.05 / family), abs=2)


def test_pilot__has_seeds_that_no_verdict_uses():
    used = range(fashion.FULL.first_seed, fashion.FULL.first_seed + fashion.FULL.seeds)
    own = range(pilot.PILOT.full.first_seed, pilot.PILOT.full.first_seed + pilot.PILOT.full.seeds)
    assert not set(used) & set(own)


def test_pilot__its_settings_are_those_of_its_report():
    stored = json.loads((DOCS / 'fashion/pilot.json').read_text())
    sizes = settings_of(stored['settings'])
    assert sizes == pilot.PILOT.full and set(stored['scores']) >= set(pilot.PILOT.measures)
    assert all(pilot.PILOT.recipe_of(name) for claim in pilot.PILOT.claims for name in claim.networks)


def test_plan__has_the_pilots_figures_and_the_settings_that_run():
    plan, report = (DOCS / 'fashion_plan.md').read_text(), json.loads((DOCS / 'fashion/pilot.json').read_text())
    family = sum(row.decides for claim in fashion.CLAIMS for row in claim.comparisons)
    assert f'0.05 / {family},' in plan
    stored = report.pop('power')
    for measure, row in stored.items():
        assert row == pilot.power_table(report)[measure]
        cells = [str(row['deviation']), *(str(row['seeds'][effect]) for effect in ('0.5', '1.0', '2.0'))]
        assert f'| {fashion.BENCH.measures[measure]} | {" | ".join(cells)} |' in plan
    same = set(report['settings']) - {'finetunings', 'seeds', 'first_seed'}
    assert all(report['settings'][name] == getattr(fashion.FULL, name) for name in same)
    tunings = fashion.FULL.finetunings.values()
    for one in tunings:
        assert f'{one.steps} {"steps " if one.labels is None else ""}of {one.batch}' in plan
    assert f'{fashion.FULL.steps():,} steps of {fashion.FULL.batch} images' in plan and fashion.FULL.seeds == 6
