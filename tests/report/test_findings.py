"""The headline sentences say what the numbers say, and no more than the runs allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fasttransfer.cells import Cell
from fasttransfer.records import Evaluation, Recorded, Result
from fasttransfer.report.findings import findings


def recorded(top1: Mapping[str, float | list[float]], *, layers: Sequence[int] = range(1, 4)) -> Recorded:
    """A study on B, one seed: the top-1 of each treatment, for all n or one a layer."""
    results = []
    for treatment, values in top1.items():
        ns = [0] if treatment == "base" else list(layers)
        for n, value in zip(ns, values if isinstance(values, list) else [values] * len(ns), strict=True):
            cell = Cell(0, "B", treatment, n)
            checks = (Evaluation(10, 1.0, 1.0, value),)
            results.append(Result(cell.name, treatment, "B", cell.source, n, 0, "done", 10, checks))
    facts = {"classes": {"B": ["c"] * 16}, "val_pictures": {"B": 1600}}
    return Recorded(Path("runs/x"), {}, facts, tuple(results), {}, ())


def sentences(study: Recorded) -> str:
    return "\n".join(finding.text for finding in findings(study))


def test_where_the_cost_begins_and_where_it_ends() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.69, 0.67, 0.60]}))
    assert text == (
        "In this single run, copying and freezing the first layer costs less than 2 points; "
        "from layer 2 it costs 3.0, rising to 10.0 at n = 3."
    )


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
    assert "Of the 12.3 points lost by the frozen transfer at n = 3, 2.0 are co-adaptation" in text
    assert " and 10.3 specificity; co-adaptation is largest at n = 2, 7.0 points." in text


def test_a_loss_of_one_part_only() -> None:
    specific = sentences(recorded({"base": 0.7, "selffer": 0.72, "transfer": [0.69, 0.68, 0.6]}))
    assert "10.0 points lost by the frozen transfer at n = 3 are all specificity" in specific
    adapted = sentences(recorded({"base": 0.7, "selffer": [0.7, 0.7, 0.58], "transfer": [0.69, 0.68, 0.6]}))
    assert "10.0 points lost by the frozen transfer at n = 3 are all co-adaptation" in adapted


def test_the_boost_and_what_the_other_task_has_to_do_with_it() -> None:
    text = sentences(recorded({"base": 0.7, "selffer+": 0.71, "transfer+": 0.715}))
    assert "ends 1.5 points above its base on average over n, 0.5 more than the fine-tuned selffer." in text
    text = sentences(recorded({"base": 0.7, "selffer+": 0.71, "transfer+": 0.685}))
    assert "ends 1.5 points below its base on average over n, 2.5 less than the fine-tuned selffer." in text
    assert "level with its base" in sentences(recorded({"base": 0.7, "transfer+": 0.7}))


def test_the_random_control_against_chance() -> None:
    text = sentences(recorded({"base": 0.7, "random": [0.5, 0.3, 0.07]}))
    assert "rozen random layers give 50.0 % at n = 1 and fall to 7.0 % at n = 3, against chance 6.2 %." in text


def test_caution_follows_the_number_of_runs(study: Callable[..., Recorded]) -> None:
    single = findings(study(("B",), (0,)))
    assert single[0].text.startswith("In this single run, ")
    assert all(f.basis == "one run for each n, so no interval" for f in single)
    both = findings(study(("A", "B"), (0,)))
    assert both[0].text.startswith("With one run for each task, ")
    assert all("no interval" in f.basis for f in both)
    many = findings(study(("A", "B"), (0, 1, 2)))
    assert many[0].text.startswith("Copying and freezing")
    assert "±" in many[0].text
    assert all(f.basis.startswith("6 runs for each n") for f in many)
    assert len(single) == len(both) == len(many) == 4


def test_unequal_numbers_of_runs_are_told(study: Callable[..., Recorded]) -> None:
    random = findings(study(("A", "B"), (0, 1, 2), diverged=["R6A", "R7A"]))[-1]
    assert random.basis.startswith("3 to 6 runs")


def test_nothing_finished_nothing_said(study: Callable[..., Recorded]) -> None:
    assert findings(study(done=0)) == []
    only_bases = study(done=2 / 72)
    assert [r.state for r in only_bases.results].count("done") == 2
    assert findings(only_bases) == []
    assert findings(replace(only_bases, results=())) == []


def test_the_score_decides(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,))
    assert findings(made, "best10")[0].text != findings(made, "last")[0].text


@pytest.mark.parametrize("pictures", [50, 640])
def test_no_more_digits_than_pictures(study: Callable[..., Recorded], pictures: int) -> None:
    made = study(("B",), (0,))
    made = replace(made, facts={**made.facts, "val_pictures": {"B": pictures}})
    assert ("." in findings(made)[-1].text.removesuffix(".")) == (pictures == 640)
