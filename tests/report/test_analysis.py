"""Paired differences, parts and intervals: by hand, against tables and simulations, against the published records."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_networks import net

from fasttransfer.core.intervals import seed_parts
from fasttransfer.report.analysis import (
    BOOST,
    CO_ADAPTATION,
    FREEZING,
    FROM_BASE,
    FROZEN_COST,
    LOST,
    SPECIFICITY,
    Contrast,
    Convergence,
    Estimate,
    Noise,
    budget_of,
    chance,
    confounds,
    convergence,
    difference,
    estimate,
    mean_chance,
    minus,
    pair_scores,
    recovered,
    score_of,
    share_at_chance,
    stuck,
    summarise,
    t_quantile,
    targets_of,
)
from fasttransfer.study.cells import Cell
from fasttransfer.study.chance import is_at_chance, is_hopeless
from fasttransfer.study.paper import load_results
from fasttransfer.study.records import Evaluation, Result


def rounded(found: Estimate | None) -> tuple[float, int, float | None]:
    """Value, runs and interval of an estimate that has to be there."""
    assert found is not None
    return round(found.value, 5), found.runs, found.half


# B has all but the random control, A lacks the fine-tuned ones.
HAND = [
    net("base", 0.70), net("selffer", 0.66), net("transfer", 0.61),
    net("transfer+", 0.72), net("selffer+", 0.71),
    net("base", 0.50, target="A"), net("selffer", 0.48, target="A"), net("transfer", 0.45, target="A"),
]  # fmt: skip


def test_a_drop_is_taken_apart_within_its_own_target_and_seed() -> None:
    on_a, on_b = pair_scores(HAND)
    assert (on_a.target, on_b.target) == ("A", "B")
    assert on_b[LOST] == pytest.approx(0.09)
    assert on_b[CO_ADAPTATION] == pytest.approx(0.04)
    assert on_b[SPECIFICITY] == pytest.approx(0.05)
    assert on_b[FREEZING] == pytest.approx(0.05)
    assert on_b[FROZEN_COST] == pytest.approx(0.10)
    assert on_b[BOOST] == pytest.approx(0.01)
    assert on_b[FROM_BASE["transfer+"]] == pytest.approx(0.02)
    assert on_a[LOST] == pytest.approx(0.05)
    missing = (BOOST, FREEZING, FROM_BASE["transfer+"], FROM_BASE["random"])
    assert [on_a[effect] for effect in missing] == [None] * 4


def test_means_are_of_paired_differences() -> None:
    (row,) = summarise(HAND).rows
    assert rounded(row.top1["transfer"]) == (0.53, 2, None)
    assert row.difference["transfer"].value == pytest.approx(-0.07)
    assert row[LOST] is not None and row[LOST].value == pytest.approx(0.07)
    # transfer+ exists on B only: against B's base it gains 2 points, against the mean of both bases 12.
    assert rounded(row[FROM_BASE["transfer+"]]) == (0.02, 1, None)
    assert rounded(row[BOOST]) == (0.01, 1, None)


def test_pairing_removes_the_difficulty_of_a_task() -> None:
    even = [net(t, base - loss, target=target) for target, base in (("A", 0.3), ("B", 0.9))
            for t, loss in (("base", 0.0), ("transfer", 0.05))]  # fmt: skip
    for drop in pair_scores(even):
        assert drop[FROM_BASE["transfer"]] == pytest.approx(-0.05)


def test_two_seeds_are_paired_each_with_their_own_base() -> None:
    results = [
        net("base", 0.60, seed=0), net("transfer", 0.50, seed=0),
        net("base", 0.64, seed=1), net("transfer", 0.56, seed=1),
    ]  # fmt: skip
    (row,) = summarise(results).rows
    found = row.difference["transfer"]
    assert found.value == pytest.approx(-0.09)
    # Differences -0.10 and -0.08: standard deviation 0.01414, standard error 0.01, t(1) = 12.706.
    assert found.half == pytest.approx(0.12706, rel=1e-4)
    assert found.runs == 2


def test_one_run_has_no_interval_and_two_tasks_are_not_two_runs_of_one() -> None:
    assert estimate([("B", 0, 0.5)]) == Estimate(0.5, 1, None)
    assert rounded(estimate([("A", 0, 0.4), ("B", 0, 0.6)])) == (0.5, 2, None)
    assert rounded(estimate([("A", 0, 0.4), ("B", 1, 0.6)])) == (0.5, 2, None)
    assert estimate([]) is None


def test_the_interval_is_that_of_the_seeds_means() -> None:
    # Means of the seeds: 6 and 8, standard error 1, t(1); the gap of 10 between the tasks does not widen it.
    found = estimate([("A", 0, 1.0), ("A", 1, 3.0), ("B", 0, 11.0), ("B", 1, 13.0)])
    assert found is not None
    assert (found.value, found.runs, found.seeds, found.freedom) == (7.0, 4, 2, pytest.approx(1))
    assert found.half == pytest.approx(12.7062047)
    assert found.error == pytest.approx(1.0)
    # What one task gains the other loses: the mean of both is known exactly.
    opposed = estimate([("A", 0, 1.0), ("A", 1, 3.0), ("B", 0, 13.0), ("B", 1, 11.0)])
    assert opposed is not None and opposed.half == pytest.approx(0.0)


def test_a_missing_run_costs_freedom_and_a_task_with_one_seed_the_interval() -> None:
    runs = [("A", 0, 1.0), ("A", 1, 3.0), ("B", 0, 11.0), ("B", 1, 13.0), ("B", 2, 18.0)]
    found = estimate(runs)
    assert found is not None and found.half is not None
    assert found.value == pytest.approx(9.2)
    assert 1 < found.freedom < 2
    assert rounded(estimate(runs[1:])) == (11.25, 4, None)


def test_order_changes_nothing() -> None:
    runs = [("A", 0, 0.11), ("A", 1, 0.13), ("B", 0, 0.21), ("B", 1, 0.26), ("B", 2, 0.17)]
    assert estimate(runs) == estimate(runs[::-1])


def test_two_studies_are_compared_as_independent_ones() -> None:
    one = estimate([("A", 0, 1.0), ("A", 1, 2.0), ("A", 2, 6.0)])
    other = estimate([("A", 0, 3.0), ("A", 1, 4.0), ("A", 2, 4.0), ("A", 3, 5.0)])
    assert one is not None and other is not None
    found = difference(one, other)
    # Welch: variances 7 / 3 and (2 / 3) / 4, on (7 / 3 + 1 / 6)^2 / ((7 / 3)^2 / 2 + (1 / 6)^2 / 3) = 2.2881.
    assert found.value == pytest.approx(-1.0)
    assert found.freedom == pytest.approx(2.2881, abs=1e-4)
    assert found.half == pytest.approx(t_quantile(2.2881) * math.sqrt(2.5), rel=1e-4)


def test_a_single_seed_is_held_against_where_one_more_seed_would_fall() -> None:
    several = estimate([("A", 0, 1.0), ("A", 1, 2.0), ("A", 2, 6.0)])
    single = estimate([("A", 0, 9.0)])
    assert several is not None and single is not None
    found = difference(single, several)
    assert found.half == pytest.approx(4.3026527 * math.sqrt(7 * (1 + 1 / 3)))
    assert difference(single, single).half is None
    both = estimate([("A", 0, 9.0), ("B", 0, 8.0)])
    assert both is not None
    assert difference(both, several).half is None  # a mean of two tasks does not vary as one task does


# Coverage: 95 % intervals hold the truth in 93 to 97 % of simulated studies, whatever runs of a seed have in common.

BOTH = ("A", "B")
DESIGNS = {
    "one task, 2 seeds": [("B", s) for s in range(2)],
    "one task, 5 seeds": [("B", s) for s in range(5)],
    "two tasks, 2 seeds": [(t, s) for t in BOTH for s in range(2)],
    "two tasks, 3 seeds": [(t, s) for t in BOTH for s in range(3)],
    "two tasks, 4 seeds": [(t, s) for t in BOTH for s in range(4)],
    "two tasks, 8 seeds": [(t, s) for t in BOTH for s in range(8)],
    "a run missing": [(t, s) for t in BOTH for s in range(4) if (t, s) != ("A", 3)],
    "half the seeds on one task": [("A", s) for s in range(2)] + [("B", s) for s in range(4)],
    "each task has its own seeds": [("A", 0), ("A", 1), ("A", 2), ("B", 3), ("B", 4), ("B", 5)],
}


@pytest.mark.parametrize("common", [-0.5, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", DESIGNS)
def test_coverage(name: str, common: float) -> None:
    """`common`: correlation of the runs of a seed. The tasks differ by 30 times the noise."""
    studies, design = 40_000, tuple(sorted(DESIGNS[name]))
    random = np.random.default_rng(list(f"{name} {common}".encode()))
    shared, own = random.normal(size=(studies, 8)), random.normal(size=(studies, len(design)))
    sign = np.array([-1 if common < 0 and target == "A" else 1 for target, _ in design])
    noise = math.sqrt(abs(common)) * sign * shared[:, [seed for _, seed in design]] + math.sqrt(1 - abs(common)) * own
    effects = np.array([{"A": -0.06, "B": -0.03}[target] for target, _ in design])
    values = effects + 0.001 * noise
    parts, freedom = seed_parts(design)
    halves = t_quantile(freedom) * np.sqrt(((values @ parts.T) ** 2).sum(axis=1))
    first = estimate((target, seed, value) for (target, seed), value in zip(design, values[0], strict=True))
    assert first is not None and first.half == pytest.approx(halves[0])  # the same intervals, all at once
    covered = float(np.mean(np.abs(values.mean(axis=1) - effects.mean()) <= halves))
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize("name", ["two tasks, 2 seeds", "two tasks, 3 seeds", "two tasks, 8 seeds", "a run missing"])
@pytest.mark.parametrize("louder", BOTH)
def test_coverage_where_one_task_is_three_times_as_noisy(name: str, louder: str) -> None:
    design = tuple(sorted(DESIGNS[name]))
    random = np.random.default_rng(list(f"{name} {louder}".encode()))
    values = random.normal(size=(40_000, len(design))) * [3 if target == louder else 1 for target, _ in design]
    parts, freedom = seed_parts(design)
    halves = t_quantile(freedom) * np.sqrt(((values @ parts.T) ** 2).sum(axis=1))
    assert 0.93 < float(np.mean(np.abs(values.mean(axis=1)) <= halves)) < 0.97


def test_pooling_the_runs_of_correlated_seeds_would_not_cover() -> None:
    """Why the seed is the unit: eight directions of four splits that have the split in common are not eight draws."""
    random = np.random.default_rng(1)
    values = random.normal(size=(40_000, 1, 4)) + random.normal(size=(40_000, 2, 4))
    pooled = np.sqrt(values.var(axis=2, ddof=1).mean(axis=1) / 8)
    assert np.mean(np.abs(values.mean(axis=(1, 2))) <= t_quantile(6) * pooled) < 0.92


def test_coverage_through_everything_a_study_runs_through() -> None:
    """Networks drawn with known effects: a better base is harder to beat and has better features for the other task.

    Five seeds, the first number at which a quantity has an interval of its own.
    """
    random = np.random.default_rng(2)
    truth = {"transfer": -0.05, "co_adaptation": 0.02, "specificity": 0.03, "boost_over_base": 0.01}
    hits = dict.fromkeys(truth, 0)
    studies = 2500
    for _ in range(studies):
        results = []
        for seed in range(5):
            luck = {target: random.normal(scale=0.004) for target in BOTH}
            for target, other in (("A", "B"), ("B", "A")):
                level = {"A": 0.65, "B": 0.53}[target]
                means = {"base": luck[target], "selffer": -0.02 + 0.5 * luck[target],
                         "transfer": -0.05 + 0.5 * luck[other], "transfer+": 0.01 + 0.3 * luck[other]}  # fmt: skip
                for treatment, mean in means.items():
                    noise = 0.0 if treatment == "base" else random.normal(scale=0.003)
                    results.append(net(treatment, level + mean + noise, target=target, seed=seed))
        (row,) = summarise(results).rows
        found = {"transfer": row.difference["transfer"], "co_adaptation": row[CO_ADAPTATION],
                 "specificity": row[SPECIFICITY], "boost_over_base": row[FROM_BASE["transfer+"]]}  # fmt: skip
        for name, one in found.items():
            assert one is not None and one.half is not None and one.kind == "seeds"
            hits[name] += abs(one.value - truth[name]) <= one.half
    for name, count in hits.items():
        assert 0.93 < count / studies < 0.97, name


@pytest.mark.parametrize(
    ("freedom", "probability", "quantile"),
    [
        (1, 0.975, 12.7062047), (2, 0.975, 4.3026527), (3, 0.975, 3.1824463), (4, 0.975, 2.7764451),
        (5, 0.975, 2.5705818), (6, 0.975, 2.4469119), (7, 0.975, 2.3646243), (10, 0.975, 2.2281389),
        (30, 0.975, 2.0422725), (120, 0.975, 1.9799304), (1, 0.95, 6.3137515), (7, 0.95, 1.8945786),
        (1.5, 0.975, 6.0166631), (2.5, 0.975, 3.5746548), (7.25, 0.975, 2.3481948),
    ],
)  # fmt: skip
def test_quantiles_of_t(freedom: float, probability: float, quantile: float) -> None:
    assert t_quantile(freedom, probability) == pytest.approx(quantile, rel=1e-7)


def test_the_parts_add_up_even_where_networks_are_missing() -> None:
    results = [
        net("base", 0.70), net("selffer", 0.66), net("transfer", 0.61),
        net("base", 0.50, target="A"), net("transfer", 0.20, target="A"),  # no selffer on A
    ]  # fmt: skip
    (row,) = summarise(results).rows
    assert row[LOST] is not None and row[CO_ADAPTATION] is not None and row[SPECIFICITY] is not None
    assert row[LOST].value == pytest.approx(row[CO_ADAPTATION].value + row[SPECIFICITY].value)
    assert row[LOST].runs == 1
    assert rounded(row.difference["transfer"]) == (-0.195, 2, None)
    # At equal training: selffer+ is there on one seed only, so all three parts are of that seed.
    more = [*results, net("selffer+", 0.72), net("selffer", 0.60, seed=1), net("transfer", 0.40, seed=1)]
    (row,) = summarise(more).rows
    assert row[FREEZING] is not None and row[SPECIFICITY] is not None and row[FROZEN_COST] is not None
    assert row[FROZEN_COST].value == pytest.approx(row[FREEZING].value + row[SPECIFICITY].value)
    assert row[FREEZING].runs == row[SPECIFICITY].runs == row[FROZEN_COST].runs == 1


def test_where_no_selffer_was_fine_tuned_the_specificity_is_over_all_runs_that_have_it() -> None:
    results = [net(t, v, seed=seed) for seed in range(2) for t, v in (("selffer", 0.6), ("transfer", 0.5))]
    (row,) = summarise(results).rows
    assert row[SPECIFICITY] is not None and row[SPECIFICITY].runs == 2
    assert row[FREEZING] is None and row[FROZEN_COST] is None


@pytest.mark.parametrize("state", ["planned", "running", "diverged"])
def test_only_finished_networks_count(state: str) -> None:
    results = [net("base", 0.7), net("selffer", 0.6), net("transfer", 0.01, state=state)]
    (row,) = summarise(results).rows
    assert "transfer" not in row.top1 and "transfer" not in row.difference
    assert row[LOST] is None and row[SPECIFICITY] is None
    assert rounded(row[CO_ADAPTATION]) == (0.1, 1, None)
    assert summarise(results).treatments == ("selffer", "transfer")


@pytest.mark.parametrize("state", ["planned", "running", "diverged"])
def test_without_its_base_nothing_is_a_difference(state: str) -> None:
    summary = summarise([net("base", 0.7, state=state), net("base", 0.9, target="A"), net("transfer", 0.6)])
    assert summary.base is None
    assert summary.rows[0].difference == {}
    assert summary.rows[0].top1["transfer"].value == pytest.approx(0.6)


def test_a_base_that_is_only_copied_from_is_no_target() -> None:
    results = [net("base", 0.9, target="A"), net("base", 0.7), net("transfer", 0.6)]
    assert targets_of(results) == ("B",)
    assert rounded(summarise(results).base) == (0.7, 1, None)
    assert targets_of(results[:2]) == ("A", "B")


def test_both_scores() -> None:
    checks = tuple(Evaluation(k, None, 1.0, k / 100) for k in range(1, 21))
    result = Result("baseA", "base", "A", None, 0, 0, "done", 20, checks)
    assert score_of(result) == 0.20
    assert score_of(result, "best10") == pytest.approx(0.155)


def test_nothing_at_all() -> None:
    assert pair_scores([]) == []
    assert summarise([]).rows == ()
    assert summarise([]).base is None


def test_chance() -> None:
    facts = {"classes": {"A": ["x"] * 16, "B": ["x"] * 10}}
    assert chance(facts, "A") == 1 / 16
    assert mean_chance(facts, ("A", "B")) == pytest.approx((1 / 16 + 1 / 10) / 2)
    assert chance({}, "A") is None
    assert mean_chance({"classes": {"A": ["x"]}}, ("A", "B")) is None


# The published records, through the code that a study's records go through: four random splits stand for seeds.

RANDOM = load_results("random").results


@pytest.mark.parametrize(
    ("treatment", "expected", "runs"),
    [
        ("transfer", [0.0031, -0.0012, -0.0062, -0.0253, -0.0471, -0.0445, -0.0826], [8] * 7),
        ("selffer", [0.0035, 0.0003, -0.0021, -0.0185, -0.0297, -0.0045, 0.0000], [4] * 7),
        ("transfer+", [0.0032, 0.0063, 0.0130, 0.0103, 0.0106, 0.0120, 0.0124], [1, 2, 2, 2, 1, 1, 1]),
        ("selffer+", [0.0026, 0.0064, 0.0121, 0.0136, 0.0110, 0.0085, 0.0115], [1, 1, 2, 1, 2, 2, 1]),
    ],
)
def test_published_records_paired(treatment: str, expected: list[float], runs: list[int]) -> None:
    rows = summarise(RANDOM, score="best10").rows
    assert [row.n for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    found = [row.difference[treatment] for row in rows]
    assert [round(f.value, 4) + 0.0 for f in found] == pytest.approx(expected, abs=1e-9)
    assert [f.runs for f in found] == runs
    for one, count in zip(found, runs, strict=True):
        assert (one.half is None) == (count == 1)
        assert one.seeds == {8: 4, 4: 4, 2: 2, 1: 1}[count]


def test_published_frozen_transfer_has_an_interval_pooled_over_four_splits() -> None:
    last = summarise(RANDOM, score="best10").rows[-1].difference["transfer"]
    assert last.kind == "pooled"
    # Both halves of every split have the base and seven frozen transfers: (8 - 1) (4 - 1).
    assert last.freedom == pytest.approx(21)
    both = np.zeros((8, 4))
    for drop in pair_scores(RANDOM, "best10"):
        both[drop.n, drop.seed] += drop.top1["transfer"] / 2
        both[0, drop.seed] += (drop.base or 0) / 14  # the base stands beside every n
    rest = both - both.mean(axis=0) - both.mean(axis=1, keepdims=True) + both.mean()
    assert last.half == pytest.approx(t_quantile(21) * math.sqrt(float((rest**2).sum()) / 21 * 2 / 4))
    assert 0.001 < last.half < 0.006


def test_published_fine_tuning_boost_is_the_same_for_both_sources() -> None:
    """Ten networks each: +.0097 and +.0097 when paired, though unpaired AnB+ looks better by 1.4 points."""
    summary = summarise(RANDOM, score="best10")
    boost, control = summary.difference["transfer+"], summary.difference["selffer+"]
    assert (boost.runs, control.runs) == (10, 10)
    assert round(boost.value, 4) == round(control.value, 4) == 0.0097
    assert summary[BOOST] is None  # no half has both


def test_published_parts_add_up_on_the_halves_that_have_all_three() -> None:
    for row in summarise(RANDOM, score="best10").rows:
        assert row[LOST] is not None and row[CO_ADAPTATION] is not None
        assert row[LOST].runs == row[CO_ADAPTATION].runs == 4
        assert row[FREEZING] is not None and row[SPECIFICITY] is not None and row[FROZEN_COST] is not None
        assert row[FREEZING].runs == row[SPECIFICITY].runs == row[FROZEN_COST].runs < 4  # few selffers were fine-tuned
        assert row[FROZEN_COST].value == pytest.approx(row[FREEZING].value + row[SPECIFICITY].value)


def test_published_natural_manmade_has_one_run_a_task_and_no_interval() -> None:
    summary = summarise(load_results("natural-manmade").results, score="best10")
    last = summary.rows[-1].difference["transfer"]
    # A: .39903 - .65340, B: .29137 - .53724.
    assert rounded(last) == (-0.25012, 2, None)


# Noise: one rule for every difference, by the number of seeds.

SMALL = {  # (treatment, n) -> scores of seeds 0 and 1, on B
    ("base", 0): (0.60, 0.62), ("selffer", 3): (0.58, 0.59), ("transfer", 3): (0.50, 0.55),
}  # fmt: skip


def small(target: str = "B", sign: float = 1.0) -> list[Result]:
    return [
        net(t, sign * v, n=n, seed=seed, target=target) for (t, n), vs in SMALL.items() for seed, v in enumerate(vs)
    ]


def test_two_seeds_pool_the_noise_of_all_networks() -> None:
    found = summarise(small()).rows[0][SPECIFICITY]
    assert found is not None and found.kind == "pooled"
    # Seed differences .02, .01, .05: about their mean, .08 / 3, they leave (-.02, -.05, .07) / 3; the squares of the
    # residuals are half of those: .0078 / 9 / 2, on (3 - 1) (2 - 1) degrees of freedom.
    variance = 0.0078 / 18 / 2
    assert found.freedom == pytest.approx(2)
    assert found.half == pytest.approx(4.3026527 * math.sqrt(variance * 2 / 2))


def test_two_targets_are_averaged_before_the_noise_is_pooled() -> None:
    # What B gains A loses: their mean is known exactly, each alone is not.
    results = [*small(), *[replace(r, evaluations=(Evaluation(1, 1.0, 1.0, 1 - r.evaluations[0].val_top1),))
                           for r in small("A")]]  # fmt: skip
    both = summarise(results).rows[0][SPECIFICITY]
    assert both is not None and both.kind == "pooled" and both.half == pytest.approx(0.0, abs=1e-12)
    one = summarise(results, target="A").rows[0][SPECIFICITY]
    assert one is not None and one.half is not None and one.half > 0.04


def test_a_base_that_occurs_several_times_in_a_mean_has_its_summed_weight() -> None:
    more = [net("transfer", v, n=5, seed=s, target=t) for t in BOTH for s, v in enumerate((0.40, 0.41))]
    noise = Noise([*small(), *small("A"), *more])
    runs = [(t, seed, minus(("transfer", n), ("base", 0))) for t in BOTH for seed in (0, 1) for n in (3, 5)]
    mean, one = noise.mean(runs), noise.mean(runs[::2])
    assert mean is not None and one is not None and mean.half is not None and one.half is not None
    # The base's weight is 1, those of the two transfers 1/2 each; of one transfer, both are 1.
    assert mean.half / one.half == pytest.approx(math.sqrt((1 + 1 / 4 + 1 / 4) / 2))


def test_a_mean_over_n_of_one_target_keeps_the_interval_of_its_own_seeds() -> None:
    """The transfer networks of one target share the noise of the base they copy, which the mean keeps."""
    more = [net("transfer", v, n=5, seed=s) for s, v in enumerate((0.40, 0.41))]
    runs = [("B", seed, minus(("transfer", n), ("base", 0))) for seed in (0, 1) for n in (3, 5)]
    mean, one = Noise([*small(), *more]).mean(runs), Noise([*small(), *more]).mean(runs[::2])
    assert mean is not None and mean.kind == "seeds" and mean.freedom == pytest.approx(1)
    assert one is not None and one.kind == "pooled"


def test_random_networks_have_a_pool_of_their_own_and_degrees_of_freedom_by_satterthwaite() -> None:
    random = [net("random", v, n=n, seed=s) for n, vs in ((3, (0.1, 0.2)), (4, (0.1, 0.1))) for s, v in enumerate(vs)]
    noise = Noise([*small(), *random])
    found = noise.mean(("B", seed, minus(("random", 3), ("base", 0))) for seed in (0, 1))
    assert found is not None and found.kind == "pooled"
    trained, alone = 0.0078 / 18 / 2, 0.05**2 / 1  # four residuals of .025; 2 and 1 degrees of freedom
    freedom = (trained + alone) ** 2 / (trained**2 / 2 + alone**2)
    assert found.freedom == pytest.approx(freedom)
    assert found.half == pytest.approx(t_quantile(freedom) * math.sqrt((trained + alone) / 2), rel=1e-4)
    one = [r for r in [*small(), *random] if (r.treatment, r.n) != ("random", 4)]
    own = Noise(one).mean(("B", seed, minus(("random", 3), ("base", 0))) for seed in (0, 1))
    assert own is not None and own.kind == "seeds" and own.freedom == pytest.approx(1)


def test_stuck_networks_leave_the_pool() -> None:
    lost = [net("transfer+", 1 / 16, seed=seed, state="stuck") for seed in (0, 1)]
    assert Noise([*small(), *lost]).mean(_specificity(2)) == Noise(small()).mean(_specificity(2))
    found = Noise([*small(), *lost]).mean(("B", s, minus(("transfer+", 3), ("base", 0))) for s in (0, 1))
    assert found is not None and found.kind == "seeds"  # what is said about them rests on themselves


def _specificity(seeds: int, targets: tuple[str, ...] = ("B",)) -> list[tuple[str, int, Contrast]]:
    return [(target, seed, minus(("selffer", 3), ("transfer", 3))) for target in targets for seed in range(seeds)]


@pytest.mark.parametrize(("seeds", "kind"), [(1, "none"), (2, "pooled"), (4, "pooled"), (5, "seeds"), (6, "seeds")])
def test_the_number_of_seeds_decides_what_an_interval_is_made_of(seeds: int, kind: str) -> None:
    random = np.random.default_rng(4)
    results = [
        net(t, 0.5 + 0.01 * random.normal(), seed=s) for s in range(seeds) for t in ("base", "selffer", "transfer")
    ]
    summary = summarise(results)
    part, level = summary.rows[0][SPECIFICITY], summary.rows[0].top1["transfer"]
    assert part is not None and part.kind == kind and (part.half is None) == (kind == "none")
    assert level.kind == ("none" if seeds == 1 else "seeds")  # a level has its seeds' share in it: never pooled
    assert summary.noise_kind == kind


def test_runs_that_are_not_balanced_keep_the_interval_of_their_own_seeds() -> None:
    runs = {
        ("A", 0): (0.5, 0.4),
        ("A", 1): (0.5, 0.42),
        ("B", 0): (0.7, 0.5),
        ("B", 1): (0.7, 0.53),
        ("B", 2): (0.7, 0.51),
    }
    results = [net(t, v, target=target, seed=seed) for (target, seed), vs in runs.items()
               for t, v in zip(("selffer", "transfer"), vs, strict=True)]  # fmt: skip
    found = summarise(results).rows[0][SPECIFICITY]
    own = estimate((target, seed, a - b) for (target, seed), (a, b) in runs.items())
    assert found is not None and own is not None and found.kind == "seeds"
    assert found.half == pytest.approx(own.half)


BITS = {"selffer": [1, 1, 1, 0, 1, 0, 1, 1, 0, 1], "transfer": [1, 0, 1, 0, 0, 1, 1, 1, 0, 1]}


def seen(target: str = "B") -> list[Result]:
    """Two networks of which it is known which of ten images they got right."""
    return [replace(net(t, sum(bits) / 10, target=target), correct=np.packbits(bits).tobytes())
            for t, bits in BITS.items()]  # fmt: skip


def test_one_seed_is_held_against_the_images_paired_one_by_one() -> None:
    facts = {"val_pictures": {"A": 10, "B": 10}}
    found = Noise(seen(), facts).mean(_specificity(1))
    assert found is not None and found.value == pytest.approx(0.1) and found.kind == "images"
    # Differences +1 twice, -1 once, 0 seven times: mean .1, variance .3 - .01.
    assert found.half == pytest.approx(1.959964 * math.sqrt(0.29 / 10))
    assert found.error is None and found.freedom == 0
    both = Noise([*seen(), *seen("A")], facts).mean(_specificity(1, BOTH))
    assert both is not None and both.half == pytest.approx(found.half / math.sqrt(2))


def test_one_seed_without_a_record_of_the_images_has_no_interval_unless_errors_are_taken_as_independent() -> None:
    facts = {"val_pictures": {"B": 10}}
    results = [replace(seen()[0], correct=None), seen()[1]]
    found = Noise(results, facts).mean(_specificity(1))
    assert found is not None and found.half is None and found.kind == "none"
    cautious = Noise(results, facts).mean(_specificity(1), unpaired=True)
    assert cautious is not None and cautious.kind == "images"
    assert cautious.half == pytest.approx(1.959964 * math.sqrt((0.7 * 0.3 + 0.6 * 0.4) / 10))
    paired = Noise(seen(), facts).mean(_specificity(1), unpaired=True)
    assert paired is not None and paired.half is not None and cautious.half is not None and paired.half < cautious.half
    nothing = Noise(results).mean(_specificity(1), unpaired=True)
    assert nothing is not None and nothing.kind == "none"
    short = Noise(seen(), {"val_pictures": {"B": 100}}).mean(_specificity(1))  # of other images than the study's
    assert short is not None and short.kind == "none"


@pytest.mark.parametrize("seeds", [2, 3])
def test_pooled_intervals_of_few_seeds_cover(seeds: int) -> None:
    """The noise of a base, 40 % of which what is copied from it inherits; 22 networks on each of two targets."""
    random = np.random.default_rng([9, seeds])
    parts = ("freezing", "specificity", "boost")
    truth = {"selffer": -0.02, "selffer+": 0.0, "transfer": -0.05, "transfer+": 0.01}
    true = {"freezing": 0.02, "specificity": 0.03, "boost": 0.01, "gain": 0.0}
    studies, hits = 1200, dict.fromkeys((*parts, "gain"), 0)
    for _ in range(studies):
        results = []
        for seed in range(seeds):
            level, luck = 0.02 * random.normal(), dict(zip(BOTH, 0.01 * random.normal(size=2), strict=True))
            for target, other in (BOTH, BOTH[::-1]):
                mean = {"A": 0.65, "B": 0.53}[target] + level
                own = iter(0.0092 * random.normal(size=40))
                results.append(net("base", mean + luck[target], target=target, seed=seed))
                results.append(net("base+", mean + 0.4 * luck[target] + next(own), n=8, target=target, seed=seed))
                for treatment, effect in truth.items():
                    source = luck[other if treatment.startswith("transfer") else target]
                    for n in (1, 3, 4, 5, 7):
                        top1 = mean + effect + 0.4 * source + next(own)
                        results.append(net(treatment, top1, n=n, target=target, seed=seed))
        noise = Noise(results)
        pairs = {
            "freezing": minus(("selffer+", 3), ("selffer", 3)),
            "specificity": minus(("selffer", 3), ("transfer", 3)),
            "boost": minus(("transfer+", 3), ("selffer+", 3)),
            "gain": minus(("base+", 0), ("base", 0)),
        }
        for name, contrast in pairs.items():
            found = noise.mean((target, seed, contrast) for target in BOTH for seed in range(seeds))
            assert found is not None and found.half is not None and found.kind == "pooled"
            hits[name] += abs(found.value - true[name]) <= found.half
    for name in parts:
        assert 0.93 < hits[name] / studies < 0.97, name
    assert hits["gain"] / studies > 0.93  # a base has more in common with its base+ than with the rest of the pool


# base+ and the verdict.


def test_base_plus_is_no_row_and_no_target() -> None:
    results = [net("base", 0.7), net("base+", 0.72, n=8), net("transfer", 0.6), net("base", 0.6, target="A"),
               net("base+", 0.6, n=8, target="A")]  # fmt: skip
    assert [drop.n for drop in pair_scores(results)] == [3]
    assert targets_of(results) == ("B",)
    summary = summarise(results)
    assert [row.n for row in summary.rows] == [3] and summary.treatments == ("transfer",)
    assert rounded(summary.base_plus) == (0.72, 1, None)
    assert summary.gain is not None and summary.gain.value == pytest.approx(0.02)
    bases = [r for r in results if r.treatment != "transfer"]
    assert targets_of(bases) == ("A", "B")
    assert summarise(bases).rows == () and summarise(bases).noise_kind == "none"


def gained(gains: list[float], **facts: dict[str, int]) -> Convergence:
    """The verdict on bases that gain `gains`, one a seed; beside them selffers that tell the noise."""
    results = []
    for seed, gain in enumerate(gains):
        results += [net("base", 0.7, seed=seed), net("base+", 0.7 + gain, n=8, seed=seed)]
    found = convergence(results, facts)
    assert found is not None
    return found


def test_a_gain_of_one_point_within_its_interval_is_finished_and_above_it_is_not() -> None:
    spread = [0.01 - 0.02, 0.01, 0.01 + 0.02]  # mean one point, standard error above it
    at_limit = gained(spread)
    assert at_limit.gain.half is not None and at_limit.gain.half > at_limit.gain.value == pytest.approx(0.01)
    assert at_limit.finished
    assert not gained([gain + 0.0001 for gain in spread]).finished


def test_a_small_gain_above_its_interval_is_not_finished() -> None:
    small_gain = gained([0.0049, 0.005, 0.0051])
    assert small_gain.gain.half is not None and small_gain.gain.half < small_gain.gain.value
    assert not small_gain.finished
    assert gained([-0.0049, -0.005, -0.0051]).finished  # a loss is no missing training
    assert gained([0.0, 0.0, 0.0]).finished


def test_without_an_interval_only_the_limit_counts() -> None:
    assert gained([0.01]).gain.half is None
    assert gained([0.01]).finished and not gained([0.0101]).finished
    # Errors taken as independent: 10,000 images tell 1.3 points apart.
    told = gained([0.009], val_pictures={"B": 10_000})
    assert told.gain.kind == "images" and told.finished
    assert not gained([0.009], val_pictures={"B": 1_000_000}).finished


def test_the_verdict_is_of_the_mean_over_tasks_or_of_one() -> None:
    results = [net(t, v, n=8, target=target) for target, gain in (("A", 0.03), ("B", -0.02))
               for t, v in (("base", 0.7), ("base+", 0.7 + gain))]  # fmt: skip
    both = convergence(results)
    assert both is not None and both.gain.value == pytest.approx(0.005) and both.finished
    assert {task: round(found.value, 6) for task, found in both.tasks.items()} == {"A": 0.03, "B": -0.02}
    on_a = convergence(results, target="A")
    assert on_a is not None and not on_a.finished and list(on_a.tasks) == ["A"]


@pytest.mark.parametrize("state", ["planned", "running", "diverged"])
def test_there_is_no_verdict_without_a_finished_base_plus_beside_its_base(state: str) -> None:
    assert convergence([net("base", 0.7), net("base+", 0.7, n=8, state=state)]) is None
    assert convergence([net("base", 0.7, state=state), net("base+", 0.7, n=8)]) is None
    assert convergence(RANDOM) is None


# What is confounded or missing, in words.


def test_the_published_confounds_are_said() -> None:
    told = confounds(RANDOM, "best10", seeds_are="random splits")
    assert told == [
        "Transfer was run on A and B of random splits 0 to 3, selffer on A of random splits 0 to 3: the two are "
        "compared where both are, with 28 of 56 cuts.",
        "Transfer+ was run on B of random splits 0 and 1, selffer+ on A of random splits 0 and 1: nowhere are both, "
        "so that the two cannot be paired with each other and a gain by the other task's features cannot be told from "
        "one by longer training.",
        "Read off the unpaired means, transfer+ (64.1 %) is 1.4 points above selffer+ (62.7 %); each paired with the "
        "base of its own half, it is level with it (+0.97 and +0.97). The rest is the halves that were run, whose "
        "bases have 63.1 and 61.8 %.",
    ]
    (missing,) = confounds(load_results("natural-manmade").results)
    assert missing.startswith("No selffer was run: what is lost to co-adaptation")


def test_a_whole_grid_has_no_confounds() -> None:
    whole = [net(t, 0.6, target=target, n=n, seed=seed) for target in BOTH for seed in range(2) for n in (1, 2)
             for t in ("base", "selffer", "selffer+", "transfer", "transfer+", "random")]  # fmt: skip
    assert confounds(whole) == []
    short = [r for r in whole if (r.treatment, r.n, r.target) != ("selffer", 2, "A")]
    (told,) = confounds(short)
    assert told == (
        "Transfer and selffer were not run at the same n everywhere: the two are compared where both are, with 6 of 8 "
        "cuts."
    )


def test_a_missing_base_is_said_with_what_it_costs() -> None:
    results = [net("base", 0.6), net("transfer", 0.5), net("selffer", 0.5),
               net("base", 0.6, target="A", state="diverged"), net("transfer", 0.5, target="A"),
               net("selffer", 0.5, target="A")]  # fmt: skip
    assert confounds(results) == [
        "The base of A is missing: what was trained there (2 of 4 networks) is in no difference."
    ]
    assert confounds([net("transfer", 0.5, target=target) for target in ("A", "B")])[0] == (
        "The bases of A and B are missing: what was trained there (2 of 2 networks) is in no difference."
    )


# Stuck: finite and nothing learned.


def curve(points: list[tuple[int, float, float]], treatment: str = "base") -> Result:
    """A network on B with these (step, validation loss, top-1)."""
    cell = Cell(0, "B", treatment, 0 if treatment == "base" else 3)
    checks = tuple(Evaluation(step, None, loss, top1) for step, loss, top1 in points)
    return Result(cell.name, treatment, "B", cell.source, cell.n, 0, "done", points[-1][0], checks)


def test_a_network_at_the_loss_of_an_even_guess_is_stuck() -> None:
    even = math.log(16)
    never = curve([(100 * i, even, 1 / 16) for i in range(1, 5)])
    assert stuck(never, 16) and not recovered(never, 16)
    late = curve([(100, even, 0.06), (200, even + 0.001, 0.07), (300, 2.0, 0.4), (400, 1.5, 0.5)])
    assert share_at_chance(late, 16) == 0.5
    assert stuck(late, 16) and recovered(late, 16)
    slow = curve([(100, even, 0.06), (200, 2.5, 0.2), (300, 2.0, 0.4), (400, 1.5, 0.5)])
    assert share_at_chance(slow, 16) == 0.25 and not stuck(slow, 16)
    overfitted = curve([(100, 2.0, 0.4), (200, even, 0.4), (300, even + 1, 0.4)])
    assert share_at_chance(overfitted, 16) == 0
    collapsed = curve([(100, 2.0, 0.4), (200, even, 1 / 16)])
    assert stuck(collapsed, 16) and not recovered(collapsed, 16)
    assert not stuck(net("base", 0.5, state="planned"), 16)
    two_of_three = curve([(100, 1.2, 0.6)])  # wrong with confidence where wrong, but no guesser
    assert not stuck(two_of_three, 3)


def test_a_network_in_training_is_judged_by_the_length_of_its_whole_training() -> None:
    even = math.log(16)
    beginner = replace(curve([(100, even, 1 / 16)]), state="running")
    assert not stuck(beginner, 16) and not stuck(beginner, 16, 1000)
    hopeless = replace(curve([(100 * i, even, 1 / 16) for i in range(1, 4)]), state="running")
    assert stuck(hopeless, 16, 1000)
    assert share_at_chance(hopeless, 16, 1000) == pytest.approx(0.3)
    assert budget_of([hopeless, curve([(1000, 1.0, 0.7)])], "B") == 1000
    assert budget_of([hopeless], "B") is None
    assert not stuck(replace(hopeless, state="diverged"), 16, 1000)


def test_a_training_loss_that_no_guesser_has_is_no_chance() -> None:
    even = math.log(16)
    assert is_at_chance(Evaluation(100, even, even, 1 / 16), 16)
    assert is_at_chance(Evaluation(100, None, even, 1 / 16), 16)  # nobody wrote it down
    assert not is_at_chance(Evaluation(100, even - 0.1, even + 1, 1 / 16), 16)  # learned by heart
    assert not is_at_chance(Evaluation(100, even, None, 1 / 16), 16)  # diverged, which is another thing


def test_when_a_network_is_given_up() -> None:
    even = math.log(16)
    lost = [Evaluation(step, even, even, 1 / 16) for step in (25, 50, 75, 100)]
    assert [is_hopeless(lost[:i], 16, 100, 0.5) for i in range(1, 5)] == [False, True, True, False]
    assert not any(is_hopeless(lost[:i], 16, 100, 1.0) for i in range(1, 5))
    begun = [replace(lost[0], val_top1=0.3), *lost[1:]]  # it fell back to chance, and may come back
    assert not any(is_hopeless(begun[:i], 16, 100, 0.5) for i in range(1, 5))


def test_a_network_ended_early_is_stuck_and_counts() -> None:
    even = math.log(16)
    ended = replace(curve([(25, even, 1 / 16), (50, even, 1 / 16)], "random"), state="stuck")
    base = curve([(100, 1.0, 0.7)])
    assert stuck(ended, 16) and stuck(ended, 16, 1000) and not recovered(ended, 16)
    assert share_at_chance(ended, 16) == 1.0 and share_at_chance(ended, 16, 100) == 0.5
    assert budget_of([ended], "B") is None and budget_of([ended, base], "B") == 100
    (row,) = summarise([base, ended]).rows
    assert row.difference["random"].value == pytest.approx(1 / 16 - 0.7)
    assert score_of(ended, "best10") == 1 / 16
    assert score_of(replace(ended, state="skipped", evaluations=())) is None
    # As a base it is there, and what is paired with it has a difference.
    as_base = replace(curve([(50, even, 1 / 16)]), state="stuck")
    assert not [told for told in confounds([as_base, net("selffer", 0.1)]) if "missing" in told]


def test_the_published_networks_that_are_stuck() -> None:
    found = {r.name for which in ("full", "reduced") for r in load_results(which).results if stuck(r, 1000)}  # type: ignore[arg-type]
    assert found == {"R3", "base5", "base10", "base25", "base50", "base100"}


def test_stuck_networks_stay_in_the_means() -> None:
    even = math.log(16)
    results = [curve([(100, 1.0, 0.7)]), curve([(100, even, 1 / 16)], "random")]
    (row,) = summarise(results).rows
    assert row.difference["random"].value == pytest.approx(1 / 16 - 0.7)
