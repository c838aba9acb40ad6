"""Studies side by side: paired differences, their distances, joined splits, volumes, errors and notes."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_networks import net, study_of

from fasttransfer import cli
from fasttransfer.core.errors import InputError
from fasttransfer.report.analysis.comparison import Line, compare, pooled
from fasttransfer.report.analysis.effects import PARTS
from fasttransfer.report.side_by_side import comparison_page
from fasttransfer.report.table import comparison_table
from fasttransfer.study.paper import load_results
from fasttransfer.study.recipe import load_recipe
from fasttransfer.study.records import Result, StudyResults

RECIPE = {name: value for name, value in asdict(load_recipe("mini")).items() if value is not None}


def one_split(number: int, cost: float, **study: Any) -> StudyResults:
    results = [r for target in ("A", "B") for r in (net("base", 0.6, target=target),
                                                     net("transfer", 0.6 - cost, target=target))]  # fmt: skip
    about = {"data": "builtin", "split": f"random:{number}", "recipe": RECIPE, **study}
    return study_of(results, name=f"random-{number}", **about)


def line_of(lines: tuple[Line, ...], treatment: str, n: int) -> Line:
    (found,) = [line for line in lines if (line.effect.name, line.n) == (treatment, n)]
    return found


def test_the_papers_third_figure() -> None:
    """Random halves against natural and man-made: equal at first, three times the cost at n = 7."""
    comparison = compare([load_results("random"), load_results("natural-manmade")], "best10")
    assert comparison.names == ("paper:random", "paper:natural-manmade")
    last = line_of(comparison.lines, "transfer", 7)
    random, natural = last.estimates
    assert random is not None and natural is not None and last.apart[0] is None
    assert (round(random.value, 4), round(natural.value, 4)) == (-0.0826, -0.2501)
    apart = last.apart[1]
    assert apart is not None and apart.half is not None
    assert apart.value == pytest.approx(natural.value - random.value)
    assert random.half is not None
    assert apart.half == pytest.approx(random.half * 5**0.5)  # one more draw beside four
    first = line_of(comparison.lines, "transfer", 1).apart[1]
    assert first is not None and first.half is not None and abs(first.value) < first.half
    assert line_of(comparison.lines, "selffer", 4).apart == (None, None)
    assert any("one seed" in note for note in comparison.notes)
    assert not any("another recipe" in note or "another network" in note for note in comparison.notes)


def test_studies_of_one_kind_of_random_split_are_joined() -> None:
    studies = [one_split(i, 0.05 + 0.01 * i) for i in range(3)]
    (joined,) = pooled(studies)
    assert sorted({result.seed for result in joined.results}) == [0, 1, 2]
    assert joined.facts["seeds_are"] == "random splits"
    assert joined.facts["class_counts"] == {"A": 16, "B": 16}
    other = one_split(0, 0.2)
    other = replace(other, folder=other.folder.with_name("other"), study={**other.study, "split": "natural-manmade"})
    comparison = compare([*studies, other])
    assert len(comparison.studies) == 2
    found = line_of(comparison.lines, "transfer", 3)
    assert found.estimates[0] is not None and found.estimates[0].value == pytest.approx(-0.06)
    assert found.estimates[0].half == pytest.approx(4.3026527 * 0.01 / 3**0.5)
    assert found.apart[1] is not None and found.apart[1].value == pytest.approx(-0.14)


def test_a_recipe_from_before_schedules_had_a_name_is_not_another_recipe() -> None:
    steps = {**RECIPE, "schedule": "step", "warmup": 0.0}
    nameless = {name: value for name, value in steps.items() if name not in ("schedule", "warmup")}
    warmed = {**steps, "warmup": 0.1}
    before, same, other = (one_split(i, 0.05, recipe=r, seeds=[i, 9]) for i, r in enumerate((nameless, steps, warmed)))
    assert not any("another recipe" in note for note in compare([before, same]).notes)
    assert any("warmup: 0 and 0.1" in note for note in compare([before, other]).notes)


def test_studies_that_differ_in_more_than_their_split_are_not_joined() -> None:
    longer = one_split(1, 0.05, recipe={**RECIPE, "epochs": 33.0})
    assert len(pooled([one_split(0, 0.05), longer])) == 2
    other_images = one_split(1, 0.05, data="/images")
    assert len(pooled([one_split(0, 0.05), other_images])) == 2
    two_seeds = replace(longer, results=(*longer.results, net("base", 0.6, seed=1)))
    assert len(pooled([two_seeds, one_split(0, 0.05)])) == 2
    assert len(pooled([one_split(1, 0.05), replace(one_split(0, 0.05), study={"split": "mine.toml"})])) == 2


def test_the_same_split_twice_is_an_error() -> None:
    again = one_split(1, 0.05)
    again = replace(again, folder=again.folder.with_name("again"))
    with pytest.raises(InputError, match="random:1 is there twice"):
        compare([one_split(0, 0.05), one_split(1, 0.05), again])


def test_a_study_is_not_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", "paper:random", "paper:natural-manmade", "paper:random"]) == 2
    assert "paper:random is there twice" in capsys.readouterr().err


def test_splits_of_one_kind_alone_are_shown_with_their_interval() -> None:
    comparison = compare([one_split(i, 0.05 + 0.01 * i) for i in range(3)])
    file = io.StringIO()
    Console(file=file, width=80).print(comparison_table(comparison))
    assert "transfer   3  -6.0 +- 2.5" in file.getvalue()


def test_an_unfinished_study_has_its_progress_beside_its_name() -> None:
    waiting = net("transfer", 0.5, n=5, state="planned")
    half = study_of([net("base", 0.6), net("transfer", 0.5), waiting], name="half")
    file = io.StringIO()
    Console(file=file, width=80).print(comparison_table(compare([half, load_results("random")])))
    heads = [line for line in file.getvalue().splitlines() if line.startswith("[")]
    assert heads[:2] == ["[1] half, 2 of 3 networks done", "[2] paper:random"]


def test_other_networks_recipes_and_images_are_noted_and_still_compared() -> None:
    here = one_split(0, 0.05)
    network = {**RECIPE["network"], "name": "wide"}
    there = one_split(1, 0.08, data="/images", recipe={**RECIPE, "batch": 256, "warmup": 0.1, "network": network})
    comparison = compare([here, there])
    notes = " ".join(comparison.notes)
    assert "random-1 has another network than random-0 (caffenet-mini and wide)" in notes
    assert "another recipe than random-0 (batch: 16 and 256, warmup: 0.05 and 0.1)" in notes
    assert "random-1 and random-0 are of different images" in notes
    apart = line_of(comparison.lines, "transfer", 3).apart[1]
    assert apart is not None and apart.value == pytest.approx(-0.03) and apart.half is None
    assert "no intervals" in notes


def whole(name: str, gain: float | None, seeds: int = 2) -> StudyResults:
    """A study on B with all treatments at n = 3, its base+ ahead of its base by `gain`."""
    tops = {"base": 0.7, "selffer": 0.66, "selffer+": 0.71, "transfer": 0.61, "transfer+": 0.73}
    results = [
        net(t, v + 0.001 * ((i + 1) * s % 3), seed=s) for s in range(seeds) for i, (t, v) in enumerate(tops.items())
    ]
    if gain is not None:
        results += [net("base+", 0.7 + gain, n=8, seed=s) for s in range(seeds)]
    return study_of(results, name=name)


def test_the_parts_at_equal_training_have_lines_of_their_own() -> None:
    comparison = compare([whole("x", None), whole("y", None, seeds=3)])
    assert [line.effect for line in comparison.lines if line.n == 3][-3:] == list(PARTS)
    for part, value in (("freezing", 0.05), ("specificity", 0.05), ("boost", 0.02)):
        line = line_of(comparison.lines, part, 3)
        for found in line.estimates:
            assert found is not None and found.value == pytest.approx(value, abs=0.003) and found.kind == "pooled"
        assert line.apart[0] is None and line.apart[1] is not None and line.apart[1].half is not None
        assert line.apart[1].kind == "pooled"
    assert not any(line.effect.name == "base+" or line.n == 8 for line in comparison.lines)


def test_below_the_name_of_each_study_stands_whether_its_bases_had_finished() -> None:
    file = io.StringIO()
    studies = [whole("x", 0.0, seeds=1), whole("y", 0.032, seeds=1)]
    Console(file=file, width=200).print(comparison_table(compare(studies)))
    lines = file.getvalue().splitlines()
    assert lines[0] == "[1] x" and lines[1].startswith("    The bases had finished learning")
    assert lines[2] == "[2] y" and lines[3].startswith("    The bases had not finished learning: ")
    assert "(base+) they gain 3.2 +- " in lines[3]
    assert "Differences from the base measure that missing training too." in " ".join(lines[3:5])
    page = comparison_page(compare(studies), command="fasttransfer compare x y")
    assert page.count("had not finished learning") == 1


def test_without_a_base_plus_the_verdict_is_that_it_was_not_measured() -> None:
    file = io.StringIO()
    Console(file=file, width=200).print(comparison_table(compare([whole("x", None), whole("y", None)])))
    assert file.getvalue().count("was not measured: the study has no base+.") == 2
    assert "The bases had" not in file.getvalue()


def test_one_seed_each_with_recorded_images_has_intervals_of_the_images_only() -> None:
    bits = np.packbits(np.arange(5000) % 5 > 0).tobytes()
    studies = [whole(name, None, seeds=1) for name in ("x", "y")]
    studies = [replace(s, results=tuple(replace(r, correct=bits) for r in s.results)) for s in studies]
    notes = " ".join(compare(studies).notes)
    assert "One seed each in x and y: the intervals are of the validation images only" in notes
    assert "no intervals" not in notes


def test_studies_without_a_common_n_are_noted() -> None:
    one = study_of([net("base", 0.6), net("transfer", 0.5)])
    other = study_of([net("base", 0.6), net("selffer", 0.5)], name="y")
    assert any("nothing can be set side by side" in note for note in compare([one, other]).notes)


def test_studies_with_equal_folder_names_are_named_by_their_paths() -> None:
    one = study_of([net("base", 0.6), net("transfer", 0.5)])
    other = replace(one, folder=one.folder.parent / "old" / one.folder.name)
    assert compare([one, other]).names == ("runs/x", "runs/old/x")


def test_bases_by_the_volume_of_their_images() -> None:
    (study,) = compare([load_results("reduced")], "best10").studies
    volumes = compare([study], "best10").volumes
    assert [v.per_class for v in volumes] == [1, 2, 5, 10, 25, 50, 100, 250, 500, 750, 1000, 1300]
    assert [v.stuck for v in volumes] == [False, False, True, True, True, True, True, *[False] * 5]
    assert volumes[-1].base.value == 0.55176 and volumes[-1].chance == 1 / 1000
    few, many = (
        study_of([net("base", score, seed=seed) for seed, score in enumerate(scores)], name=name,
                 facts={"train_pictures": {"B": 16 * images}})
        for name, images, scores in (("few", 10, [0.2, 0.3]), ("many", 100, [0.6, 0.7]))
    )  # fmt: skip
    found = compare([many, few]).volumes
    assert [(v.study, v.per_class, round(v.base.value, 3)) for v in found] == [("few", 10, 0.25), ("many", 100, 0.65)]
    assert found[0].base.half == pytest.approx(12.7062 * 0.05, rel=1e-4)


def test_one_study_alone_is_refused() -> None:
    with pytest.raises(InputError, match="name two studies or more"):
        compare([load_results("random")])
    with pytest.raises(InputError, match="name two studies or more"):
        compare([])


def test_the_distance_of_a_single_seed_covers() -> None:
    """A fifth split of the same kind lies within the interval in 95 % of all cases."""
    random = np.random.default_rng(8)
    hits = 0
    for _ in range(1500):

        def drawn(seed: int) -> list[Result]:
            return [net("base", 0.6, seed=seed), net("transfer", 0.55 + 0.003 * random.normal(), seed=seed)]

        several = study_of([r for seed in range(4) for r in drawn(seed)])
        (line,) = compare([several, study_of(drawn(0), name="y")]).lines
        apart = line.apart[1]
        assert apart is not None and apart.half is not None
        hits += abs(apart.value) <= apart.half
    assert 0.93 < hits / 1500 < 0.97


@pytest.mark.parametrize("which", [("random", "natural-manmade"), ("reduced",)])
def test_the_table_fits_80_columns(which: tuple[str, ...]) -> None:
    file = io.StringIO()
    comparison = compare([load_results(name) for name in which], "best10")  # type: ignore[arg-type]
    Console(file=file, width=80).print(comparison_table(comparison))
    text = file.getvalue()
    assert "…" not in text and text.replace("─", "").isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", "paper:random", "paper:natural-manmade", "--score", "best10"]) == 0
    assert "[2] paper:natural-manmade" in capsys.readouterr().out
    assert cli.run(["compare", "paper:random"]) == 2
    assert "name two studies or more" in capsys.readouterr().err
    assert cli.run(["compare", "paper", "paper:random"]) == 2
    assert "paper: choose one of paper:random" in capsys.readouterr().err
