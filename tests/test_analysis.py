"""Paired differences, parts and intervals: by hand, against tables, against the published records."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from fasttransfer.analysis import (
    Estimate,
    chance,
    drops,
    estimate,
    mean_chance,
    score_of,
    summarise,
    t_quantile,
    targets_of,
)
from fasttransfer.cells import Cell
from fasttransfer.records import Evaluation, Result


def net(treatment: str, top1: float, *, target: str = "B", n: int = 3, seed: int = 0, state: str = "done") -> Result:
    """One network with a single check."""
    cell = Cell(seed, target, treatment, 0 if treatment == "base" else n)
    checks = () if state == "planned" else (Evaluation(100, 1.0, 1.0, top1),)
    return Result(cell.name, treatment, target, cell.source, cell.n, seed, state, 100, checks)


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
    on_a, on_b = drops(HAND)
    assert (on_a.target, on_b.target) == ("A", "B")
    assert on_b.lost == pytest.approx(0.09)
    assert on_b.co_adaptation == pytest.approx(0.04)
    assert on_b.specificity == pytest.approx(0.05)
    assert on_b.boost == pytest.approx(0.02)
    assert on_b.boost_over_selffer == pytest.approx(0.01)
    assert on_a.lost == pytest.approx(0.05)
    assert on_a.boost is None and on_a.difference("random") is None


def test_means_are_of_paired_differences() -> None:
    (row,) = summarise(HAND).rows
    assert rounded(row.top1["transfer"]) == (0.53, 2, None)
    assert row.difference["transfer"].value == pytest.approx(-0.07)
    assert row.lost is not None and row.lost.value == pytest.approx(0.07)
    # transfer+ exists on B only: against B's base it gains 2 points, against the mean of both bases 12.
    assert rounded(row.boost) == (0.02, 1, None)


def test_pairing_removes_the_difficulty_of_a_task() -> None:
    even = [net(t, base - loss, target=target) for target, base in (("A", 0.3), ("B", 0.9))
            for t, loss in (("base", 0.0), ("transfer", 0.05))]  # fmt: skip
    for drop in drops(even):
        assert drop.difference("transfer") == pytest.approx(-0.05)


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
    assert estimate([("B", 0.5)]) == Estimate(0.5, 1, None)
    assert rounded(estimate([("A", 0.4), ("B", 0.6)])) == (0.5, 2, None)
    assert estimate([]) is None


def test_the_interval_is_over_seeds_inside_each_task() -> None:
    # Inside each task the variance is 2, on 2 degrees of freedom together; the gap of 10 does not widen it.
    found = estimate([("A", 1.0), ("A", 3.0), ("B", 11.0), ("B", 13.0)])
    assert found is not None
    assert found.value == 7.0
    assert found.half == pytest.approx(4.302653 * math.sqrt(2 / 4), rel=1e-6)


@pytest.mark.parametrize(
    ("freedom", "probability", "quantile"),
    [
        (1, 0.975, 12.7062047), (2, 0.975, 4.3026527), (3, 0.975, 3.1824463), (4, 0.975, 2.7764451),
        (5, 0.975, 2.5705818), (6, 0.975, 2.4469119), (7, 0.975, 2.3646243), (10, 0.975, 2.2281389),
        (30, 0.975, 2.0422725), (120, 0.975, 1.9799304), (1, 0.95, 6.3137515), (7, 0.95, 1.8945786),
    ],
)  # fmt: skip
def test_quantiles_of_t(freedom: int, probability: float, quantile: float) -> None:
    assert t_quantile(freedom, probability) == pytest.approx(quantile, rel=1e-7)


def test_the_parts_add_up_even_where_networks_are_missing() -> None:
    results = [
        net("base", 0.70), net("selffer", 0.66), net("transfer", 0.61),
        net("base", 0.50, target="A"), net("transfer", 0.20, target="A"),  # no selffer on A
    ]  # fmt: skip
    (row,) = summarise(results).rows
    assert row.lost is not None and row.co_adaptation is not None and row.specificity is not None
    assert row.lost.value == pytest.approx(row.co_adaptation.value + row.specificity.value)
    assert row.lost.runs == 1
    assert rounded(row.difference["transfer"]) == (-0.195, 2, None)


@pytest.mark.parametrize("state", ["planned", "running", "diverged"])
def test_only_finished_networks_count(state: str) -> None:
    results = [net("base", 0.7), net("selffer", 0.6), net("transfer", 0.01, state=state)]
    (row,) = summarise(results).rows
    assert "transfer" not in row.top1 and "transfer" not in row.difference
    assert row.lost is None and row.specificity is None
    assert rounded(row.co_adaptation) == (0.1, 1, None)
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
    assert drops([]) == []
    assert summarise([]).rows == ()
    assert summarise([]).base is None


def test_chance() -> None:
    facts = {"classes": {"A": ["x"] * 16, "B": ["x"] * 10}}
    assert chance(facts, "A") == 1 / 16
    assert mean_chance(facts, ("A", "B")) == pytest.approx((1 / 16 + 1 / 10) / 2)
    assert chance({}, "A") is None
    assert mean_chance({"classes": {"A": ["x"]}}, ("A", "B")) is None


# The published records: four random splits stand in for seeds.


def published(path: Path, study: str) -> list[Result]:
    """The networks of `random` (all four halvings; seed = number of the split) or `natural-manmade`."""
    results = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["study"].startswith(study):
                continue
            seed = int(row["study"].removeprefix("random-")) if study == "random" else 0
            top1 = float(row["val_top1_best10"])
            results.append(net(row["treatment"], top1, target=row["target"], n=int(row["n"] or 0), seed=seed))
    return results


@pytest.mark.parametrize(
    ("treatment", "expected", "runs"),
    [
        ("transfer", [0.0031, -0.0012, -0.0062, -0.0253, -0.0471, -0.0445, -0.0826], [8] * 7),
        ("selffer", [0.0035, 0.0003, -0.0021, -0.0185, -0.0297, -0.0045, 0.0000], [4] * 7),
        ("transfer+", [0.0032, 0.0063, 0.0130, 0.0103, 0.0106, 0.0120, 0.0124], [1, 2, 2, 2, 1, 1, 1]),
        ("selffer+", [0.0026, 0.0064, 0.0121, 0.0136, 0.0110, 0.0085, 0.0115], [1, 1, 2, 1, 2, 2, 1]),
    ],
)
def test_published_records_paired(shared: Path, treatment: str, expected: list[float], runs: list[int]) -> None:
    rows = summarise(published(shared / "paper" / "results.csv", "random")).rows
    assert [row.n for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    found = [row.difference[treatment] for row in rows]
    assert [round(f.value, 4) + 0.0 for f in found] == pytest.approx(expected, abs=1e-9)
    assert [f.runs for f in found] == runs


def test_published_fine_tuning_boost_is_the_same_for_both_sources(shared: Path) -> None:
    """Ten networks each: +.0097 and +.0097 when paired, though unpaired AnB+ looks better by 1.4 points."""
    found = drops(published(shared / "paper" / "results.csv", "random"))
    paired, plain = {}, {}
    for treatment in ("transfer+", "selffer+"):
        differences = [d for drop in found if (d := drop.difference(treatment)) is not None]
        assert len(differences) == 10
        paired[treatment] = sum(differences) / 10
        plain[treatment] = sum(drop.top1[treatment] for drop in found if treatment in drop.top1) / 10
    assert round(paired["transfer+"], 4) == round(paired["selffer+"], 4) == 0.0097
    assert round(plain["transfer+"] - plain["selffer+"], 3) == 0.014


def test_published_parts_add_up_on_the_halves_that_have_all_three(shared: Path) -> None:
    for row in summarise(published(shared / "paper" / "results.csv", "random")).rows:
        assert row.lost is not None and row.co_adaptation is not None and row.specificity is not None
        assert row.lost.runs == row.co_adaptation.runs == row.specificity.runs == 4
        assert row.lost.value == pytest.approx(row.co_adaptation.value + row.specificity.value)


def test_published_natural_manmade_has_one_run_a_task_and_no_interval(shared: Path) -> None:
    summary = summarise(published(shared / "paper" / "results.csv", "natural-manmade"))
    last = summary.rows[-1].difference["transfer"]
    # A: .39903 - .65340, B: .29137 - .53724.
    assert rounded(last) == (-0.25012, 2, None)
