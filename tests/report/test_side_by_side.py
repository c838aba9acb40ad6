"""The paper drawn from its published results, and studies side by side."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from html_reader import check_stands_alone

from fasttransfer import cli
from fasttransfer.report import write_comparison
from fasttransfer.report.analysis.comparison import compare
from fasttransfer.report.side_by_side import comparison_page, paper_page
from fasttransfer.study import paper
from fasttransfer.study.records import StudyResults

# Paired differences over the halves that were run, n = 1 to 7, in points; mean of the ten best checks.
TRANSFER = ("+0.3", "−0.1", "−0.6", "−2.5", "−4.7", "−4.4", "−8.3")
SELFFER = ("+0.3", "0.0", "−0.2", "−1.8", "−3.0", "−0.4", "0.0")
# The same to the last digit that was published.
MEANS = {
    "transfer - base": ("0.0031", "-0.0012", "-0.0062", "-0.0253", "-0.0471", "-0.0445", "-0.0826"),
    "selffer - base": ("0.0035", "0.0003", "-0.0021", "-0.0185", "-0.0297", "-0.0045", "0.0000"),
}


def test_the_paper_is_reproduced_from_its_published_results(papers_page: str) -> None:
    rows = re.findall(r'<tr><th scope="row">([1-7])</th>(.*?)</tr>', papers_page)[:7]
    for (n, row), selffer, transfer in zip(rows, SELFFER, TRANSFER, strict=True):
        differences = re.findall(r"<small>(.*?)[ <]", row)
        assert [differences[0], differences[2]] == [selffer, transfer], f"n = {n}"


def test_the_papers_page_has_its_figures_and_failed_networks(papers_page: str) -> None:
    read = check_stands_alone(papers_page)
    assert len(read.images) == 6
    for part in (
        "148 published networks",
        "figure 2",
        "figure 3",
        "all 1000 classes",
        "no better than chance",
        "1,300",
    ):
        assert part in read.text
    assert "fasttransfer report --paper" in read.text
    assert "ten best" in read.text and "last validation check" in check_stands_alone(paper_page("last")).text


@pytest.mark.prints
def test_the_paper_alone(tmp_path: Path, papers_page: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "paper"
    assert cli.run(["report", "--paper", "--out", str(folder)]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [row[6] for row in printed if len(row) > 6 and row[0] in list("1234567")][:7]  # of the first table
    assert shown == [f"({points.replace('−', '-')})" for points in TRANSFER]
    means = list(csv.DictReader((folder / "means.csv").read_text(encoding="utf-8").splitlines()))
    for what, expected in MEANS.items():
        rows = [row for row in means if (row["study"], row["what"]) == ("random", what)]
        assert [f"{float(row['mean']):.4f}".replace("-0.0000", "0.0000") for row in rows] == list(expected)
        assert {row["seeds"] for row in rows} == {"4"}
    names = ("accuracy", "differences", "decomposition", "comparison", "volume")
    drawn = {f"{name}.{kind}" for name in names for kind in ("svg", "pdf", "png")}
    assert {path.name for path in folder.iterdir()} == {"index.html", "means.csv", *drawn}
    assert (folder / "index.html").read_text(encoding="utf-8") == papers_page


def named(name: str, recorded: StudyResults) -> StudyResults:
    return replace(recorded, folder=Path("runs") / name)


@pytest.mark.prints
def test_studies_side_by_side(study: Callable[..., StudyResults], tmp_path: Path) -> None:
    one, other = study(seeds=(0, 1)), study(("B",), treatments=["transfer"], layers=[2, 5])
    compared = compare([named("one", one), named("<other>", other), paper.load_results("random")])
    index = write_comparison(compared, tmp_path / "both", command="fasttransfer compare one other")
    names = {path.name for path in index.parent.iterdir()}
    assert names == {"index.html", "comparison.svg", "comparison.pdf", "comparison.png"}
    read = check_stands_alone(index.read_text(encoding="utf-8"))
    assert "<other>: One seed" in read.text and "fasttransfer compare one other" in read.text
    assert "n one <other> paper:random <other> − one paper:random − one 1 " in read.text  # the transfers' table
    assert "n one paper:random paper:random − one 1 " in read.text  # the other study has no selffers
    assert all(note in read.text for note in compared.notes)
    assert "Fewer images" not in read.text


def test_studies_of_different_volume_are_a_curve(study: Callable[..., StudyResults]) -> None:
    full = study(layers=[1])
    few = replace(full, facts={**full.facts, "train_pictures": {"A": 320, "B": 320}})
    read = check_stands_alone(comparison_page(compare([named("full", full), named("few", few)]), command="x"))
    assert "Fewer images" in read.text
    assert "images per class task A task B 20 " in read.text
    alone = check_stands_alone(comparison_page(compare([paper.load_results("reduced")]), command="x"))
    assert "Fewer images" in alone.text and "figure 3" not in alone.text


@pytest.mark.parametrize("done", [0.0, 0.3])
def test_studies_under_way(study: Callable[..., StudyResults], done: float) -> None:
    comparison = compare([named("one", study(done=done)), named("other", study(done=done))])
    check_stands_alone(comparison_page(comparison, command="x"))


def test_each_study_leads_with_its_verdict_and_equal_training(study: Callable[..., StudyResults]) -> None:
    studies = [named("one", study(seeds=(0, 1))), named("other", study(seeds=(0, 1), missing=0.09))]
    text = comparison_page(compare(studies), command="x")
    banners = re.findall(r'<p class="(verdict[^"]*)">(\w+):', text)
    assert banners == [("verdict", "one"), ("verdict verdict-bad", "other")]
    assert text.index("At equal training") < text.index("figure 3")
    assert "selffer+ − selffer" in text and "transfer+ − selffer+" in text
