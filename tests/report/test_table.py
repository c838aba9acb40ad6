"""The terminal's table: 80 columns, plain text where there is no terminal, and what it left out."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from fasttransfer import paper
from fasttransfer.records import Evaluation, Recorded
from fasttransfer.report import table


def printed(recorded: Recorded, *, encoding: str = "utf-8", score: str = "last") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    Console(file=file, width=80).print(table(recorded, score=score))  # type: ignore[arg-type]
    return raw.getvalue().decode(encoding)


def test_fits_80_columns_and_has_every_n(study: Callable[..., Recorded]) -> None:
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
        assert lines[0].startswith("base ")
        assert [line.split()[0] for line in lines[3:10]] == list("1234567")
        assert not any("…" in line for line in lines)
        for line in lines[3:10]:
            assert line.count("(") == line.count(")") == 5


def test_the_numbers_by_hand(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,), layers=[5])
    score = {
        "base": 0.75,
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
    assert "base 75.0 %, chance 6.2 %" in text
    assert text.splitlines()[1].split() == [
        "n", "selffer", "selffer+", "transfer", "transfer+", "random", "co-ad.", "spec.",
    ]  # fmt: skip
    assert "5 70.0  (-5.0) 76.0  (+1.0) 62.5 (-12.5) 77.0  (+2.0) 12.0 (-63.0)    5.0   7.5" in text


def test_is_plain_without_a_terminal(study: Callable[..., Recorded]) -> None:
    assert "\x1b" not in printed(study())
    assert printed(study(), encoding="ascii").isascii()


def test_says_what_is_not_in_the_means(study: Callable[..., Recorded]) -> None:
    text = printed(study(("B",), (0,), done=0.5, diverged=["B2B"]))
    assert "Diverged, not counted: B2B." in text
    assert "Where runs are missing" not in text  # what one seed has, it has everywhere or nowhere
    assert "Where runs are missing" in printed(study(seeds=(0, 1), layers=[3], done=0.9))
    assert "mean over 2 targets and 4 random splits" in printed(paper.recorded("random"))
    assert "Unfinished: 17 of 37 networks done" in text
    assert "One seed" in text
    assert "synthetic" in text
    assert "views: unlimited." in text
    limited = study(("B",), (0,))
    assert "views: 10." in printed(replace(limited, study={**limited.study, "views": 10}))
    assert "One seed" not in printed(study(seeds=(0, 1)))


def test_only_the_treatments_of_the_study(study: Callable[..., Recorded]) -> None:
    text = printed(study(("B",), (0,), treatments=("transfer",), layers=[2, 5]))
    assert "selffer" not in text and "co-ad." not in text
    assert [line.split()[0] for line in text.splitlines()[3:5]] == ["2", "5"]


@pytest.mark.parametrize("done", [0.0, 1 / 72])
def test_nothing_or_next_to_nothing_finished(study: Callable[..., Recorded], done: float) -> None:
    text = printed(study(done=done))
    assert "0 of 72 networks done" in text or "1 of 72 networks done" in text


def test_bases_alone_have_no_empty_grid(study: Callable[..., Recorded]) -> None:
    made = study(("A", "B"), (0,))
    text = printed(replace(made, results=tuple(r for r in made.results if r.treatment == "base")))
    assert text.startswith("base ")
    assert "─" not in text


def test_the_score_is_named(study: Callable[..., Recorded]) -> None:
    assert "ten best checks" in printed(study(), score="best10")
    assert printed(study(), score="best10").splitlines()[0] != printed(study()).splitlines()[0]
