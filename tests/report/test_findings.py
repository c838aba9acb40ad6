"""The headline sentences say what the numbers say, and no more than the runs allow."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fasttransfer.report.findings import findings, warnings
from fasttransfer.study.cells import Cell
from fasttransfer.study.paper import load_results as published
from fasttransfer.study.records import Evaluation, Result, StudyResults


def recorded(top1: Mapping[str, float | list[float]], *, layers: Sequence[int] = range(1, 4)) -> StudyResults:
    """A study on B, one seed: the top-1 of each treatment, for all n or one a layer."""
    results = []
    for treatment, values in top1.items():
        ns = [0] if treatment == "base" else list(layers)
        for n, value in zip(ns, values if isinstance(values, list) else [values] * len(ns), strict=True):
            cell = Cell(0, "B", treatment, n)
            checks = (Evaluation(10, 1.0, 1.0, value),)
            results.append(Result(cell.name, treatment, "B", cell.source, n, 0, "done", 10, checks))
    facts = {"classes": {"B": ["c"] * 16}, "val_pictures": {"B": 1600}}
    return StudyResults(Path("runs/x"), {}, facts, tuple(results), {}, ())


def sentences(study: StudyResults) -> str:
    return "\n".join(finding.text for finding in findings(study))


def test_where_the_cost_begins_and_where_it_ends() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.69, 0.67, 0.60]}))
    assert text == (
        "In this single run, against the base, as the paper compares, copying and freezing the first layer costs less "
        "than 2 points; from layer 2 it costs 3.0, rising to 10.0 at n = 3."
    )
    top1: dict[str, float | list[float]]
    top1 = {"base": 0.6, "selffer+": 0.7, "selffer": 0.7, "transfer": [0.69, 0.67, 0.60]}
    equal = sentences(recorded(top1))
    assert "at equal training" in equal and "against the base" not in equal
    assert "from layer 2 it costs 3.0, rising to 10.0 at n = 3." in equal


def test_a_first_layer_that_costs() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.60, 0.59, 0.58]}))
    assert "even copying and freezing the first layer costs 10.0 points, rising to 12.0 at n = 3" in text


def test_a_transfer_that_costs_little_anywhere() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.70, 0.69, 0.695]}))
    assert "up to layer 3 costs less than 2 points, at most 1.0 at n = 2" in text


def test_a_transfer_that_gains() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.71, 0.72, 0.73]}))
    assert "costs less than 2 points, indeed nothing." in text


def test_layers_that_were_not_measured_are_not_claimed() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.69, 0.69, 0.60]}, layers=[1, 4, 6]))
    assert "n = 1, 4 layers costs less than 2 points; from layer 6 it costs 10.0." in text


def test_a_cost_that_comes_and_goes_is_not_said_to_stay() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.69, 0.65, 0.69]}))
    assert "at n = 2 it costs 5.0" in text
    assert "from layer" not in text


def test_the_parts_of_the_greatest_loss() -> None:
    top1: dict[str, float | list[float]]
    top1 = {"base": 0.7, "selffer": [0.7, 0.63, 0.68], "transfer": [0.69, 0.62, 0.577]}
    text = sentences(recorded(top1))
    assert "Of the 12.3 points that frozen transfer costs at n = 3, 2.0 are co-adaptation" in text
    assert "and 10.3 specificity" in text and "co-adaptation is largest at n = 2, 7.0 points." in text
    equal = sentences(recorded({**top1, "base": 0.6, "selffer+": 0.71}))
    assert "Of the 13.3 points that frozen transfer costs at n = 3, 3.0 are freezing" in equal
    assert "and 10.3 specificity" in equal and "freezing is largest at n = 2, 8.0 points." in equal


def test_a_loss_of_one_part_only() -> None:
    specific = sentences(recorded({"base": 0.7, "selffer": 0.72, "transfer": [0.69, 0.68, 0.6]}))
    assert "10.0 points that frozen transfer costs at n = 3, −2.0 are co-adaptation" in specific
    assert "and 12.0 specificity" in specific
    adapted = sentences(recorded({"base": 0.7, "selffer": [0.7, 0.7, 0.58], "transfer": [0.69, 0.68, 0.6]}))
    assert "at n = 3, 12.0 are co-adaptation" in adapted and "and −2.0 specificity" in adapted
    equal = sentences(recorded({"base": 0.7, "selffer": 0.6, "transfer": 0.6}))
    assert "10.0 are co-adaptation" in equal and "and 0.0 specificity" in equal


def test_the_boost_and_what_the_other_task_has_to_do_with_it() -> None:
    text = sentences(recorded({"base": 0.7, "selffer+": 0.71, "transfer+": 0.715}))
    assert "ine-tuned transfer ends 0.5 points above fine-tuned selffer" in text
    assert "transfer+ − base, is +1.5 and contains what training on for one more schedule does" in text
    text = sentences(recorded({"base": 0.7, "selffer+": 0.71, "transfer+": 0.685}))
    assert "ine-tuned transfer ends 2.5 points below fine-tuned selffer" in text
    assert "cannot be told: no fine-tuned selffer was run" in sentences(recorded({"base": 0.7, "transfer+": 0.7}))
    text = sentences(recorded({"base": 0.7, "selffer+": 0.71, "transfer+": 0.71}))
    assert "ine-tuned transfer ends level with fine-tuned selffer" in text


def test_the_random_control_against_chance() -> None:
    text = sentences(recorded({"base": 0.7, "random": [0.5, 0.3, 0.07]}))
    assert "rozen random layers give 50.0 % at n = 1 and fall to 7.0 % at n = 3, against chance 6.2 %." in text


def test_caution_follows_the_number_of_runs(study: Callable[..., StudyResults]) -> None:
    single = findings(study(("B",), (0,)))
    assert single[0].text.startswith("In this single run, ")
    assert all(f.basis.endswith("no interval") for f in single)
    both = findings(study(("A", "B"), (0,)))
    assert both[0].text.startswith("With one run for each task, ")
    assert all("no interval" in f.basis for f in both)
    many = findings(study(("A", "B"), (0, 1, 2)))
    assert many[0].text.startswith("At equal training")
    assert "±" in many[0].text
    assert [f.basis.split(" n")[0] for f in many] == [
        "6 runs for each", "6 runs for each", "42 runs over all", "6 runs for each"
    ]  # fmt: skip
    assert len(single) == len(both) == len(many) == 4


def test_unequal_numbers_of_runs_are_told(study: Callable[..., StudyResults]) -> None:
    random = findings(study(("A", "B"), (0, 1, 2), diverged=["R6A", "R7A"]))[-1]
    assert random.basis.startswith("3 to 6 runs")


def test_nothing_finished_nothing_said(study: Callable[..., StudyResults]) -> None:
    assert findings(study(done=0)) == []
    only_bases = study(done=2 / 74)
    assert [r.state for r in only_bases.results].count("done") == 2
    assert findings(only_bases) == []
    assert findings(replace(only_bases, results=())) == []


def test_the_score_decides(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,))
    assert findings(made, "best10")[0].text != findings(made, "last")[0].text


@pytest.mark.parametrize("images", [50, 640])
def test_no_more_digits_than_images(study: Callable[..., StudyResults], images: int) -> None:
    made = study(("B",), (0,))
    made = replace(made, facts={**made.facts, "val_pictures": {"B": images}})
    assert ("." in findings(made)[-1].text.removesuffix(".")) == (images == 640)


def test_intervals_say_over_what_they_are(study: Callable[..., StudyResults]) -> None:
    many = findings(study(("A", "B"), (0, 1, 2)))
    assert all("±" in f.text for f in many[:3])
    assert all("pooled over the study's cells (3 seeds)" in f.basis for f in many[:3])
    five = findings(study(("A", "B"), range(5), layers=[3, 5]))
    assert all(f.basis.endswith("± is a 95 % interval over 5 seeds") for f in five[:3])
    one = findings(study(("B",), (0,), correct=True))
    assert all(f.basis.endswith("what the validation images alone can tell (1 seed), a lower bound") for f in one[:3])
    splits = findings(published("random"), "best10")
    assert splits[0].text == (
        "Against the base, as the paper compares, copying and freezing up to layer 3 costs less than 2 points; from "
        "layer 4 it costs 2.5 ± 0.2, rising to 8.3 ± 0.2 at n = 7."
    )
    assert splits[0].basis.startswith("8 runs for each n; ±") and "(4 random splits)" in splits[0].basis


def test_parts_over_fewer_runs_than_the_whole_cost_say_so() -> None:
    whole, parts = (finding.text for finding in findings(published("random"), "best10")[:2])
    assert "8.3 ± 0.2 at n = 7" in whole
    assert "8.2 ± 0.3 points that frozen transfer costs at n = 7 in the 4 of 8 runs that have a selffer too, " in parts


def test_a_cost_called_cheap_is_doubted_where_its_interval_reaches_further() -> None:
    costs = {0: [0.005, 0.010], 1: [0.007, 0.022], 2: [0.006, 0.007]}
    results = []
    for seed, losses in costs.items():
        results.append(_one("base", 0, seed, 0.7))
        results += [_one("transfer", n, seed, 0.7 - loss) for n, loss in enumerate(losses, start=1)]
    text = sentences(StudyResults(Path("runs/x"), {}, {"val_pictures": {"B": 5000}}, tuple(results), {}, ()))
    assert "costs less than 2 points, at most 1.3 ± 1.0 at n = 2 (by their intervals not for sure at n = 2)." in text


def _one(treatment: str, n: int, seed: int, top1: float, *, loss: float = 1.0, target: str = "B") -> Result:
    cell = Cell(seed, target, treatment, n)
    return Result(cell.name, treatment, target, cell.source, n, seed, "done", 10, (Evaluation(10, loss, loss, top1),))


def test_what_fine_tuning_gains_is_not_claimed_where_halves_do_not_pair() -> None:
    text = sentences(published("random"))
    assert "cannot be told: no fine-tuned selffer was run on the same halves and cuts" in text
    assert "above" not in text


def test_a_boost_within_its_interval_may_be_chance(study: Callable[..., StudyResults]) -> None:
    results = []
    for seed, more in enumerate((0.012, -0.006, 0.004)):
        results += [
            _one("base", 0, seed, 0.7),
            _one("selffer+", 3, seed, 0.71),
            _one("transfer+", 3, seed, 0.71 + more),
        ]
    text = sentences(StudyResults(Path("runs/x"), {}, {"val_pictures": {"B": 5000}}, tuple(results), {}, ()))
    assert "Fine-tuned transfer is not distinguishable from fine-tuned selffer: +0.3 ± " in text


@pytest.mark.parametrize(
    "treatments",
    [
        ("selffer", "selffer+", "transfer", "transfer+", "random"),
        ("selffer", "transfer", "transfer+"),
        ("transfer", "transfer+"),
    ],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_an_unfinished_base_credits_nothing_to_copied_layers(
    study: Callable[..., StudyResults], treatments: Sequence[str], seeds: Sequence[int]
) -> None:
    """Longer training gives 9 points to every network but the bases: no sentence may state a difference from them."""
    bad = study(seeds=seeds, missing=0.09, treatments=treatments, correct=True)
    found = findings(bad)
    assert found
    for finding in found:
        for word in (" gain", "above its base", "base, is", "against the base", "indeed nothing", "co-adaptation"):
            assert word not in finding.text
        numbers = [float(n) for n in re.findall(r"(\d+\.\d) (?:±|points)", finding.text)]
        assert all(number < 15 for number in numbers)
    good = findings(study(seeds=seeds, treatments=treatments, correct=True, missing=-0.01))
    if "selffer+" in treatments:  # what is compared at equal training does not move with the bases
        assert [f.text.split(";")[0] for f in good[:2]] == [f.text.split(";")[0] for f in found[:2]]
    else:
        assert "not stated" in found[0].text and "not stated" not in good[0].text


def test_stuck_networks_are_told_apart() -> None:
    even = math.log(16)
    results = (
        _one("base", 0, 0, 0.7),
        _one("base", 0, 0, 1 / 16, loss=even, target="A"),
        _one("random", 5, 0, 1 / 16, loss=even),
        _one("transfer", 7, 0, 1 / 16, loss=even),
    )
    facts = {"classes": {task: ["c"] * 16 for task in ("A", "B")}}
    told = warnings(StudyResults(Path("runs/x"), {}, facts, results, {}, ()))
    assert told[0].startswith(
        "Stuck at chance, their loss no better than an even guess's: baseA. What is compared with"
    )
    assert told[1].startswith("Stuck at chance, their loss no better than an even guess's: A7B. They are in the means")
    assert told[2].startswith("Random controls stuck at chance: R5B.")
    assert told[3].startswith("No selffer was run")
    assert len(told) == 4


def test_late_starters_are_told() -> None:
    even = math.log(16)
    checks = tuple(Evaluation(10 * i, None, even if i < 4 else 1.0, 1 / 16 if i < 4 else 0.6) for i in range(1, 11))
    late = Result("baseB", "base", "B", None, 0, 0, "done", 100, checks)
    (told,) = warnings(StudyResults(Path("runs/x"), {}, {"classes": {"B": ["c"] * 16}}, (late,), {}, ()))
    assert told == "At chance for more than 25 % of training before learning began: baseB (30 %)."
    (told,) = warnings(
        StudyResults(Path("runs/x"), {}, {"classes": {"B": ["c"] * 16}}, (late, replace(late, seed=1)), {}, ())
    )
    assert told.endswith("baseB (seed 0, 30 %), baseB (seed 1, 30 %).")


def test_the_second_random_control_has_a_sentence_of_its_own() -> None:
    text = sentences(recorded({"base": 0.7, "random": [0.5, 0.07, 0.07], "random-he": [0.6, 0.5, 0.4]}))
    assert "With He's initial values frozen random layers give 60.0 % at n = 1 and fall to 40.0 % at n = 3" in text
