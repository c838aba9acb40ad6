"""The headline sentences say what the numbers say, and no more than the runs allow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fasttransfer.report.findings import findings
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


def numbers(text: str) -> list[str]:
    """Return the numbers of a sentence in order, with their signs and intervals."""
    return re.findall(r"[+−]?\d+(?:\.\d+)?(?: ± \d+(?:\.\d+)?)?", text)


def about(words: str, text: str) -> str:
    """The one sentence that has `words`, which stand for the quantity it is about, up to its first semicolon."""
    (found,) = (line for line in text.splitlines() if words in line)
    return found.split(";")[0]


def test_where_the_cost_begins_and_where_it_ends() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.69, 0.67, 0.60]}))
    assert numbers(text) == ["2", "2", "3.0", "10.0", "3"]  # cheap below, the layer, its cost, the greatest, its n
    assert "single run" in text and "less than 2 points" in text and "from layer 2" in text
    assert "against the base" in text and "equal training" not in text
    top1: dict[str, float | list[float]]
    top1 = {"base": 0.6, "selffer+": 0.7, "selffer": 0.7, "transfer": [0.69, 0.67, 0.60]}
    equal = sentences(recorded(top1)).splitlines()[0]  # a base of 60 % is not what it costs against
    assert numbers(equal) == numbers(text)
    assert "at equal training (selffer+ − transfer)" in equal and "against the base" not in equal


def test_a_first_layer_that_costs() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.60, 0.59, 0.58]}))
    assert numbers(text) == ["10.0", "12.0", "3"]
    assert "even" in text and "first layer" in text and "less than" not in text


def test_a_transfer_that_costs_little_anywhere() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.70, 0.69, 0.695]}))
    assert numbers(text) == ["3", "2", "1.0", "2"]  # up to layer 3, below 2 points, at most 1.0 at n = 2
    assert "less than 2 points" in text and "at most 1.0" in text and "from layer" not in text


def test_a_transfer_that_gains() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.71, 0.72, 0.73]}))
    assert numbers(text) == ["3", "2"] and "nothing" in text and "at most" not in text


def test_layers_that_were_not_measured_are_not_claimed() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.69, 0.69, 0.60]}, layers=[1, 4, 6]))
    assert numbers(text) == ["1", "4", "2", "6", "10.0"]
    assert "n = 1, 4" in text and "from layer 6" in text and "up to layer" not in text


def test_a_cost_that_comes_and_goes_is_not_said_to_stay() -> None:
    text = sentences(recorded({"base": 0.7, "transfer": [0.69, 0.65, 0.69]}))
    assert numbers(text) == ["2", "2", "5.0"] and "at n = 2" in text
    assert "from layer" not in text


def parts(text: str) -> tuple[str, ...]:
    """The total, its n, and the two parts by name, of the sentence that takes the greatest loss apart."""
    found = re.search(r"^Of the (\S+) points .* n = (\d), (\S+) are ([a-z-]+).* and (\S+) ([a-z]+)", text, re.MULTILINE)
    assert found is not None, text
    return found.groups()


def largest(text: str) -> tuple[str, ...]:
    """Return the part that is largest at another n, that n, and its size."""
    found = re.search(r"; ([a-z-]+) is largest at n = (\d), (\S+) points", text)
    return found.groups() if found else ()


def test_the_parts_of_the_greatest_loss() -> None:
    top1: dict[str, float | list[float]]
    top1 = {"base": 0.7, "selffer": [0.7, 0.63, 0.68], "transfer": [0.69, 0.62, 0.577]}
    text = sentences(recorded(top1))
    assert parts(text) == ("12.3", "3", "2.0", "co-adaptation", "10.3", "specificity")
    assert largest(text) == ("co-adaptation", "2", "7.0")
    equal = sentences(recorded({**top1, "base": 0.6, "selffer+": 0.71}))
    assert parts(equal) == ("13.3", "3", "3.0", "freezing", "10.3", "specificity")
    assert largest(equal) == ("freezing", "2", "8.0")


def test_a_loss_of_one_part_only() -> None:
    specific = sentences(recorded({"base": 0.7, "selffer": 0.72, "transfer": [0.69, 0.68, 0.6]}))
    assert parts(specific) == ("10.0", "3", "−2.0", "co-adaptation", "12.0", "specificity")
    adapted = sentences(recorded({"base": 0.7, "selffer": [0.7, 0.7, 0.58], "transfer": [0.69, 0.68, 0.6]}))
    assert parts(adapted) == ("10.0", "3", "12.0", "co-adaptation", "−2.0", "specificity")
    equal = sentences(recorded({"base": 0.7, "selffer": 0.6, "transfer": 0.6}))
    assert parts(equal) == ("10.0", "1", "10.0", "co-adaptation", "0.0", "specificity")
    assert not any(map(largest, (specific, adapted, equal)))  # nowhere larger than where all is


def test_the_boost_is_against_the_fine_tuned_selffer_and_the_base() -> None:
    for top1, direction, boost, over_base in (
        (0.715, "above", ["0.5"], ["+1.5"]),
        (0.685, "below", ["2.5"], ["−1.5"]),
        (0.71, "level", [], ["+1.0"]),
    ):
        text = sentences(recorded({"base": 0.7, "selffer+": 0.71, "transfer+": top1}))
        claim = about("transfer+ − selffer+", text)
        assert numbers(claim) == boost
        assert [word for word in ("above", "below", "level") if word in claim] == [direction]
        papers = text.removeprefix(claim)
        assert numbers(papers) == over_base and "transfer+ − base" in papers and "training on" in papers
    alone = sentences(recorded({"base": 0.7, "transfer+": 0.7}))
    assert "cannot be told" in alone and "no fine-tuned selffer" in alone
    assert not numbers(about("cannot be told", alone)) and "above" not in alone


def test_the_random_control_against_chance() -> None:
    text = sentences(recorded({"base": 0.7, "random": [0.5, 0.3, 0.07]}))
    assert numbers(text) == ["50.0", "1", "7.0", "3", "6.2"]
    assert "random" in text and "chance 6.2 %" in text


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


def test_unequal_numbers_of_runs_are_in_the_basis(study: Callable[..., StudyResults]) -> None:
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


def test_the_basis_says_what_an_interval_is_made_of(study: Callable[..., StudyResults]) -> None:
    many = findings(study(("A", "B"), (0, 1, 2)))
    assert all("±" in f.text for f in many[:3])
    assert all("pooled over the study's cells (3 seeds)" in f.basis for f in many[:3])
    five = findings(study(("A", "B"), range(5), layers=[3, 5]))
    assert all(f.basis.endswith("± is a 95 % interval over 5 seeds") for f in five[:3])
    one = findings(study(("B",), (0,), correct=True))
    assert all(f.basis.endswith("what the validation images alone can tell (1 seed), a lower bound") for f in one[:3])
    splits = findings(published("random"), "best10")
    assert numbers(splits[0].text) == ["3", "2", "4", "2.5 ± 0.2", "8.3 ± 0.2", "7"]
    assert "against the base" in splits[0].text.lower() and "equal training" not in splits[0].text
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
    assert numbers(text) == ["2", "2", "1.3 ± 1.0", "2", "2"]  # up to layer 2, below 2 points; and where it is doubted
    assert "less than 2 points" in text and re.search(r"\(.*intervals.* n = 2\)", text)


def _one(treatment: str, n: int, seed: int, top1: float, *, loss: float = 1.0, target: str = "B") -> Result:
    cell = Cell(seed, target, treatment, n)
    return Result(cell.name, treatment, target, cell.source, n, seed, "done", 10, (Evaluation(10, loss, loss, top1),))


def test_a_gain_by_fine_tuning_is_not_claimed_where_halves_do_not_pair() -> None:
    text = sentences(published("random"))
    claim = about("cannot be told", text)
    assert "no fine-tuned selffer" in claim and "same halves and cuts" in claim and not numbers(claim)
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
    claim = about("not distinguishable", text)
    assert "ine-tuned transfer" in claim and "fine-tuned selffer" in claim
    assert numbers(claim)[0].startswith("+0.3 ± ") and "above" not in claim


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


def test_the_second_random_control_has_a_sentence_of_its_own() -> None:
    text = sentences(recorded({"base": 0.7, "random": [0.5, 0.07, 0.07], "random-he": [0.6, 0.5, 0.4]}))
    own, others = text.splitlines()
    assert numbers(own) == ["50.0", "1", "7.0", "2", "6.2"] and "He's" not in own
    assert numbers(others) == ["60.0", "1", "40.0", "3", "6.2"] and "He's initial values" in others
