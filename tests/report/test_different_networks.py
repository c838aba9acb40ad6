"""Studies of networks with different stages: no n of one is set against an n of the other."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_reader import check_stands_alone
from made_up import RESNET, made_up
from rich.console import Console

from fasttransfer.report import figures, write_comparison
from fasttransfer.report.analysis.comparison import compare
from fasttransfer.report.side_by_side import comparison_page
from fasttransfer.report.stages import PAPER_STAGES
from fasttransfer.report.table import comparison_table
from fasttransfer.study.paper import load_results
from fasttransfer.study.records import StudyResults

APART = "have different stages"


def study(name: str, stages: tuple[str, ...] = (), images: int = 4800) -> StudyResults:
    made = made_up(seeds=(0, 1), stages=stages, layers=[1, 4])
    facts = {**made.facts, "train_pictures": {"A": images, "B": images}}
    return replace(made, folder=Path("runs") / name, facts=facts)


def test_networks_with_other_stages_are_listed_apart_in_one_sentence() -> None:
    comparison = compare([study("one", RESNET), load_results("random"), study("two", RESNET)])
    (note,) = [note for note in comparison.notes if APART in note]
    assert "(one and two; paper:random)" in note and "n of one is not n of another" in note
    resnets, papers = comparison.groups
    assert (resnets.members, papers.members) == ((0, 2), (1,))
    assert all(len(line.estimates) == 2 for line in resnets.lines)
    assert any(one is not None for line in resnets.lines for one in line.apart)
    assert all(line.apart == (None,) for line in papers.lines)


@pytest.mark.parametrize("stages", [(), PAPER_STAGES])
def test_the_papers_stages_with_and_without_names_are_one_network(stages: tuple[str, ...]) -> None:
    comparison = compare([study("one", stages), load_results("random"), study("two", PAPER_STAGES)])
    assert len(comparison.groups) == 1 and not any(APART in note for note in comparison.notes)
    assert comparison.groups[0].stages.names == PAPER_STAGES


def test_only_notes_on_studies_that_are_set_against_each_other() -> None:
    here, there = study("one", RESNET), study("two")
    there = replace(there, study={**there.study, "data": "/images", "recipe": {"batch": 3}})
    assert len(compare([here, there]).notes) == 1
    assert len(compare([study("one"), there]).notes) > 1


def test_the_terminals_tables_have_the_columns_of_one_network() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(
        comparison_table(compare([study("one", RESNET), study("two"), study("three", RESNET)]))
    )
    text = file.getvalue()
    heads = [line.split() for line in text.splitlines() if line.startswith(("part", "treatment"))]
    expected = [["n", "stage", "[1]", "[3]", "[3]", "-", "[1]"], ["n", "[2]"]]
    assert [head[1:] for head in heads] == 2 * expected
    assert "4  layer2.0" in text and " ".join(text.split()).count(APART) == 1
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_has_sections_for_each_network() -> None:
    comparison = compare([study("one", RESNET), study("two"), study("three", RESNET)])
    text = comparison_page(comparison, command="x")
    read = check_stands_alone(text)
    assert "At equal training: one and three" in read.text and "At equal training: two" in read.text
    assert "n, stage one three three − one" in read.text and "two − one" not in read.text
    assert {"transfer-1", "transfer-2"} <= set(read.ids) and read.text.count(APART) == 1
    alone = check_stands_alone(comparison_page(compare([study("one"), study("two")]), command="x"))
    assert "transfer" in alone.ids and APART not in alone.text


def test_each_network_has_a_panel_in_the_figure(tmp_path: Path) -> None:
    studies = {name: study(name, stages) for name, stages in (("one", RESNET), ("two", ()), ("three", RESNET))}
    resnets, other = figures.comparison(studies, treatments=("transfer",)).axes
    drawn = [[line for line in ax.lines if line.get_linewidth() == 1.4] for ax in (resnets, other)]
    assert [len(lines) for lines in drawn] == [2, 1]
    assert all(np.asarray(line.get_xdata()).round().tolist() == [1, 4] for lines in drawn for line in lines)
    assert [text.get_text() for text in resnets.get_xticklabels(minor=True)] == ["conv1", "layer2.0"]
    assert other.get_xlabel() == "layers copied, n"
    write_comparison(compare(list(studies.values())), tmp_path, command="x")
    assert (tmp_path / "comparison.svg").is_file()


def test_volumes_of_different_networks_are_not_one_curve() -> None:
    few = [study("one", RESNET), study("two", images=320)]
    read = check_stands_alone(comparison_page(compare(few), command="x"))
    assert "Fewer images" not in read.text
    text = check_stands_alone(comparison_page(compare([*few, study("three", RESNET, images=320)]), command="x")).text
    assert len(re.findall("Fewer images: one and three", text)) == 2  # its link and its title
