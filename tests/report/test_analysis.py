"""Paired differences, parts and intervals: by hand, against tables and simulations, against the published records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_networks import net

from fasttransfer.core.intervals import Estimate, difference, estimate, seed_parts, t_quantile
from fasttransfer.report.analysis.effects import (
    BOOST,
    CO_ADAPTATION,
    FREEZING,
    FROM_BASE,
    FROZEN_COST,
    LOST,
    SPECIFICITY,
    level,
)
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.summary import summarise, targets_of
from fasttransfer.study.chance import mean_chance
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
    noise = Noise(HAND)
    assert noise.cells == [("A", 0, 3), ("B", 0, 3)]
    on_b = {LOST: 0.09, CO_ADAPTATION: 0.04, SPECIFICITY: 0.05, FREEZING: 0.05, FROZEN_COST: 0.10, BOOST: 0.01,
            FROM_BASE["transfer+"]: 0.02}  # fmt: skip
    for effect, expected in on_b.items():
        assert noise.value("B", 0, effect.contrast(3)) == pytest.approx(expected)
    assert noise.value("A", 0, LOST.contrast(3)) == pytest.approx(0.05)
    for effect in (BOOST, FREEZING, FROM_BASE["transfer+"], FROM_BASE["random"]):
        assert noise.value("A", 0, effect.contrast(3)) is None
        assert ("A", 0, 3) not in noise.values(effect.contrast)


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
    differences = Noise(even).values(FROM_BASE["transfer"].contrast)
    assert list(differences.values()) == pytest.approx([-0.05, -0.05])


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


def test_a_base_that_is_only_copied_from_is_not_a_target() -> None:
    results = [net("base", 0.9, target="A"), net("base", 0.7), net("transfer", 0.6)]
    assert targets_of(results) == ("B",)
    assert rounded(summarise(results).base) == (0.7, 1, None)
    assert targets_of(results[:2]) == ("A", "B")


def test_both_scores() -> None:
    checks = tuple(Evaluation(k, None, 1.0, k / 100) for k in range(1, 21))
    result = Result("baseA", "base", "A", None, 0, 0, "done", 20, checks)
    assert result.score("last") == 0.20
    assert result.score("best10") == pytest.approx(0.155)


def test_nothing_at_all() -> None:
    assert Noise([]).cells == []
    assert summarise([]).rows == ()
    assert summarise([]).base is None


def test_chance() -> None:
    facts = {"classes": {"A": ["x"] * 16, "B": ["x"] * 10}}
    assert mean_chance(facts, ["A"]) == 1 / 16
    assert mean_chance(facts, ("A", "B")) == pytest.approx((1 / 16 + 1 / 10) / 2)
    assert mean_chance({}, ["A"]) is None
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
    noise = Noise(RANDOM, score="best10")
    for (target, seed, n), top1 in noise.values(lambda n: level(("transfer", n))).items():
        both[n, seed] += top1 / 2
        both[0, seed] += noise.scores(target, ("base", 0))[seed] / 14  # the base stands beside every n
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
