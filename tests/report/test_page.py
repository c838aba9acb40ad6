"""The page stands alone, is valid, and tells the reader what to be careful about."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fasttransfer.errors import InputError
from fasttransfer.records import Recorded, Result
from fasttransfer.report import write_report
from fasttransfer.report.page import page

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Checks that elements close in order; collects ids, links and the text people read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "xlink:href", "data", "action"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.mark.parametrize("kind", ["whole", "seeds", "half", "nothing", "empty"])
def test_parses_and_loads_nothing(study: Callable[..., Recorded], kind: str) -> None:
    made = {
        "whole": lambda: study(),
        "seeds": lambda: study(seeds=(0, 1), layers=[2, 7], diverged=["R7A"]),
        "half": lambda: study(("B",), (0,), done=0.5),
        "nothing": lambda: study(done=0),
        "empty": lambda: Recorded(Path("runs/x"), {}, {}, (), {}, ()),
    }[kind]()
    text = page(made)
    read = Reader(text)
    assert len(read.ids) == len(set(read.ids))
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert all(target.startswith("#") for target in read.loads)
    assert set(read.links) == {"https://arxiv.org/abs/1411.1792", "results.csv"}
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_says_everything_a_colleague_asks(study: Callable[..., Recorded]) -> None:
    text = Reader(page(study(seeds=(0, 1)))).text  # the whole grid
    for part in (
        "made-up", "natural-manmade", "caffenet-mini", "2 seeds", "144 of 144 networks done",
        "Synthetic pictures", "Copying and freezing up to layer", "co-adaptation", "specificity",
        "recipe.geometry.channels", "24, 64, 96", "torch", "2.15.0", "fasttransfer grid --out runs/made-up",
        "zebra-coat", "plant no. 3 <leaf>", "640 validation pictures", "Yosinski", "NIPS 2014", "started",
    ):  # fmt: skip
        assert part in text, part


def test_single_runs_are_flagged(study: Callable[..., Recorded]) -> None:
    assert "One seed" in Reader(page(study(layers=[3]))).text
    several = Reader(page(study(seeds=(0, 1), layers=[3]))).text
    assert "95 % interval" in several
    assert "One seed" not in several


def test_diverged_and_unfinished_are_flagged(study: Callable[..., Recorded]) -> None:
    text = Reader(page(study(("B",), (0,), done=0.5, diverged=["B2B"]))).text
    assert "Diverged, left out of every mean, drawn as a cross: B2B: loss is not a number." in text
    assert "Unfinished, not counted in any mean: A3B, A4B" in text


def test_a_mean_of_fewer_runs_says_so(study: Callable[..., Recorded]) -> None:
    assert "3 of 6 runs" in Reader(page(study(seeds=(0, 1, 2), layers=[7], diverged=["R7A"]))).text
    assert " of 6 runs" not in Reader(page(study(seeds=(0, 1, 2), layers=[7]))).text


def test_photographs_are_not_called_synthetic(study: Callable[..., Recorded]) -> None:
    made = study(layers=[3])
    made = replace(made, facts={**made.facts, "synthetic": False, "held_out": True, "refused": 2})
    text = Reader(page(made)).text
    assert "ynthetic" not in text
    assert "cut from its training pictures" in text
    assert "2 pictures could not be decoded" in text


def test_nothing_done_is_said(study: Callable[..., Recorded]) -> None:
    text = Reader(page(study(done=0))).text
    assert "Nothing to compare yet" in text
    assert "0 of 72 networks done" in text


def test_what_comes_from_outside_is_escaped(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,))
    made = replace(
        made,
        folder=Path("runs/<b>me</b>"),
        study={**made.study, "data": "<script>alert(1)</script>"},
        environment={"<i>": "<script>"},
    )
    assert "<script" not in page(made)
    assert "<b>me" not in page(made)


def test_tables_hold_the_numbers(study: Callable[..., Recorded]) -> None:
    """Task B alone, n = 7: the fields of both tables are those of the summary."""
    from fasttransfer.analysis import summarise
    from fasttransfer.report.numbers import cost, per_cent, points

    made = study(("B",), (0,))
    row = summarise(made.results).rows[-1]
    text = Reader(page(made)).text
    assert row.lost and row.co_adaptation and row.specificity
    fields = [f"{per_cent(row.top1[t].value)} {points(row.difference[t].value)}" for t in row.top1]
    assert f"7 {' '.join(fields)}" in text
    assert f"7 {cost(row.lost)} {cost(row.co_adaptation)} {cost(row.specificity)}" in text


def test_writes_every_file_whole(study: Callable[..., Recorded], tmp_path: Path) -> None:
    made = study(("B",), (0, 1))
    index = write_report(made, tmp_path / "runs" / "x")
    assert index == tmp_path / "runs" / "x" / "report" / "index.html"
    names = {path.name for path in index.parent.iterdir()}
    assert names == {
        "index.html", "results.csv", "accuracy.svg", "accuracy.png", "drops.svg", "drops.png", "learning.svg",
        "learning.png",
    }  # fmt: skip
    before = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    write_report(made, tmp_path / "runs" / "x")
    assert {path.name: path.read_bytes() for path in index.parent.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_told(study: Callable[..., Recorded], tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file is in the way")
    with pytest.raises(InputError, match="report"):
        write_report(study(("B",), (0,), layers=[1]), tmp_path)


def test_results_csv(study: Callable[..., Recorded], tmp_path: Path) -> None:
    made = study(("B",), (0, 1), done=0.5, diverged=["B2B"])
    write_report(made, tmp_path)
    with (tmp_path / "report" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "name", "treatment", "source", "target", "n", "seed", "state", "steps", "val_top1", "val_top1_best10",
        "val_loss", "base_top1", "difference_to_base", "classes", "chance",
    ]  # fmt: skip
    assert [(r["name"], int(r["seed"])) for r in rows] == [(r.name, r.seed) for r in made.results]
    by_name = {(r["name"], r["seed"]): r for r in rows}
    base, transfer = by_name["baseB", "0"], by_name["A4B", "0"]
    assert base["source"] == "" and base["n"] == "0" and base["difference_to_base"] == "0.000000"
    assert transfer["source"] == "A" and transfer["base_top1"] == base["val_top1"]
    assert float(transfer["difference_to_base"]) == pytest.approx(
        float(transfer["val_top1"]) - float(base["val_top1"]), abs=2e-6
    )
    assert transfer["classes"] == "16" and transfer["chance"] == "0.062500"
    diverged = by_name["B2B", "0"]
    assert diverged["state"] == "diverged" and diverged["val_top1"] and not diverged["difference_to_base"]
    planned = by_name["R7B", "1"]
    assert planned["state"] == "planned" and planned["val_top1"] == "" and planned["steps"] == "0"


def test_a_large_study_is_quick(study: Callable[..., Recorded], tmp_path: Path) -> None:
    """216 networks with 450 checks each; processor time, which other work on the machine hardly lengthens."""
    made = study(("A", "B"), (0, 1, 2), checks=450)
    assert len(made.results) == 216
    start = time.process_time()
    index = write_report(made, tmp_path)
    assert time.process_time() - start < 10
    assert index.stat().st_size < 3_000_000


def test_losses_that_are_not_numbers(study: Callable[..., Recorded], tmp_path: Path) -> None:
    made = study(("B",), (0,), layers=[2], diverged=["B2B"])

    def broken(result: Result) -> Result:
        last = replace(result.evaluations[-1], val_loss=float("nan"), train_loss=float("inf"))
        return replace(result, evaluations=(*result.evaluations[:-1], last))

    made = replace(made, results=tuple(broken(r) if r.state == "diverged" else r for r in made.results))
    text = Reader(write_report(made, tmp_path).read_text(encoding="utf-8")).text
    assert "nan" not in text.lower()
