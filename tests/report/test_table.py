"""The terminal's table: 80 columns, plain text where there is no terminal, and the networks left out of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from fasttransfer.report import table
from fasttransfer.study import paper
from fasttransfer.study.records import Evaluation, StudyResults


def printed(recorded: StudyResults, *, encoding: str = "utf-8", score: str = "last") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    Console(file=file, width=80).print(table(recorded, score=score))  # type: ignore[arg-type]
    return raw.getvalue().decode(encoding)


def test_fits_80_columns_and_has_every_n(study: Callable[..., StudyResults]) -> None:
    made = study(("A", "B"), (0, 1, 2))
    worst = replace(  # two digits before every point
        made,
        results=tuple(
            replace(r, evaluations=(Evaluation(1, None, 1.0, 0.99 if r.n == 0 else 0.10 + 0.001 * r.n),))
            for r in made.results
        ),
    )
    for recorded in (made, worst):
        lines = printed(recorded).splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0].startswith("The bases ")
        assert not any("…" in line for line in lines)
        numbered = [line for line in lines if line.split()[:1] and line.split()[0] in list("1234567")]
        assert [line.split()[0] for line in numbered] == 2 * list("1234567")
        for line in numbered[:7]:
            assert line.count("(") == line.count(")") == 5
        for line in numbered[7:]:
            assert line.count("+-") == 5


def test_the_numbers_by_hand(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), layers=[5])
    score = {
        "base": 0.75,
        "base+": 0.755,
        "selffer": 0.70,
        "selffer+": 0.76,
        "transfer": 0.625,
        "transfer+": 0.77,
        "random": 0.12,
    }
    made = replace(
        made,
        results=tuple(replace(r, evaluations=(Evaluation(9, 1.0, 1.0, score[r.treatment]),)) for r in made.results),
    )
    text = printed(made)
    assert "base 75.0 %, base+ 75.5 %, chance 6.2 %" in text
    heads = [line.split() for line in text.splitlines() if line.split()[0] == "n"]
    assert heads == [
        ["n", "selffer", "selffer+", "transfer", "transfer+", "random"],
        ["n", "freezing", "specificity", "both", "boost", "co-adapt."],
    ]
    assert "5 70.0  (-5.0) 76.0  (+1.0) 62.5 (-12.5) 77.0  (+2.0) 12.0 (-63.0)" in text
    assert [line.split() for line in text.splitlines() if line.startswith(" 5")] == [
        ["5", "6.0", "7.5", "13.5", "+1.0", "5.0"]
    ]


def test_is_plain_without_a_terminal(study: Callable[..., StudyResults]) -> None:
    assert "\x1b" not in printed(study())
    assert printed(study(), encoding="ascii").isascii()


def test_networks_left_out_of_the_means_are_listed(study: Callable[..., StudyResults]) -> None:
    text = printed(study(("B",), (0,), done=0.5, diverged=["B2B"]))
    assert re.search(r"Diverged[^:]*not counted: B2B\.", text)
    assert "Where runs are missing" not in text  # what one seed has, it has everywhere or nowhere
    assert "Where runs are missing" in printed(study(seeds=(0, 1), layers=[3], done=0.9))
    assert "mean over 2 targets and 4 random splits" in printed(paper.load_results("random"))
    made = study(("B",), (0,), done=0.5, diverged=["B2B"])
    done = sum(r.state == "done" for r in made.results)
    assert re.search(rf"Unfinished: {done} of {len(made.results)} ", text)
    assert "One seed" in text
    assert "synthetic" in text
    assert "views: unlimited." in text
    limited = study(("B",), (0,))
    assert "views: 10." in printed(replace(limited, study={**limited.study, "views": 10}))
    assert "One seed" not in printed(study(seeds=(0, 1)))


def test_only_the_treatments_of_the_study(study: Callable[..., StudyResults]) -> None:
    text = printed(study(("B",), (0,), treatments=("transfer",), layers=[2, 5]))
    assert "selffer" not in text and "co-adapt." not in text
    assert [line.split()[0] for line in text.splitlines() if line[:1].isdigit()] == ["2", "5"]


@pytest.mark.parametrize("done", [0.0, 1 / 74])
def test_nothing_or_next_to_nothing_finished(study: Callable[..., StudyResults], done: float) -> None:
    text = printed(study(done=done))
    assert f"{round(74 * done)} of 74 networks done" in text
    rows = [line.split() for line in text.splitlines() if line.split()[:1] and line.split()[0] in list("1234567")]
    assert all(set(row[1:]) == {"-"} for row in rows)  # no number where nothing was measured


def test_bases_alone_have_no_empty_grid(study: Callable[..., StudyResults]) -> None:
    made = study(("A", "B"), (0,))
    text = printed(replace(made, results=tuple(r for r in made.results if r.treatment == "base")))
    assert "\nbase 7" in text
    assert "─" not in text


def test_the_score_is_named(study: Callable[..., StudyResults]) -> None:
    assert "ten best checks" in printed(study(), score="best10")
    lines = [next(line for line in printed(study(), score=s).splitlines() if "%" in line) for s in ("last", "best10")]
    assert lines[0].startswith("base ") and lines[0] != lines[1]


@pytest.mark.parametrize("missing", [0.0, 0.09])
def test_the_verdict_is_the_first_line(study: Callable[..., StudyResults], missing: float) -> None:
    text = printed(study(seeds=(0, 1), missing=missing))
    assert text.startswith("The bases had not finished learning" if missing else "The bases had finished learning")
    assert printed(study(base_plus=False)).startswith("Whether the bases had finished learning was not measured")


def test_the_source_of_the_intervals_is_stated(study: Callable[..., StudyResults]) -> None:
    assert "noise pooled over the study's cells (2 seeds)" in printed(study(seeds=(0, 1)))
    assert "interval over 5 seeds" in printed(study(seeds=range(5), layers=[3]))
    one = printed(study(("B",), correct=True, layers=[3]))
    assert "validation images alone can tell (1 seed), a lower bound" in one
    without = printed(study(("B",), layers=[3], base_plus=False))
    assert "+- is" not in without and "One seed: no interval" in without
