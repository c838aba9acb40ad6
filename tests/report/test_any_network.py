"""Studies of networks with any number of stages: figures, tables and sentences name the stages."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import made_up
import numpy as np
import pytest
from html_reader import Reader, check_stands_alone
from made_up import RESNET
from made_up import made_up as study
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console, RenderableType
from safetensors.numpy import save_file

from fasttransfer import cli
from fasttransfer.report import figures, table, write_report
from fasttransfer.report.advice import advice_table
from fasttransfer.report.analysis.advice import advise
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.cautions import cautions
from fasttransfer.report.drawing import cut_colour, some_cuts
from fasttransfer.report.findings import findings
from fasttransfer.report.page import page
from fasttransfer.report.spreadsheet import means_csv, results_csv
from fasttransfer.report.stages import NO_OVERLAY, PAPER_STAGES
from fasttransfer.study import paper
from fasttransfer.study.records import Evaluation, Records

GRID = ("selffer", "selffer+", "transfer", "pretrained")
NETWORKS = {
    5: ("features.0", "features.3", "features.6", "features.8", "avgpool", "classifier"),
    7: PAPER_STAGES,
    8: (*RESNET[:8], "fc"),
    13: ("conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads"),
    17: ("conv1", *(f"layer{i}.{j}" for i, k in ((1, 3), (2, 4), (3, 6), (4, 3)) for j in range(k)), "fc"),
    33: ("stem", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(8)), "fc"),
    151: ("stem", *(f"stages.{i}.blocks.{j}" for i in range(5) for j in range(30)), "head"),
}


def printed(what: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(what)
    return file.getvalue()


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts of a figure that lie on each other."""
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]


@pytest.mark.parametrize("cuts", NETWORKS)
@pytest.mark.parametrize("draw", [figures.accuracy, figures.worth])
def test_no_text_lies_on_another(draw: object, cuts: int) -> None:
    made = study(("A", "B"), (0,), stages=NETWORKS[cuts], treatments=GRID, checks=4)
    figure = draw(made)  # type: ignore[operator]
    assert overlapping(figure) == []
    assert figure.get_size_inches()[0] <= 6.6
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
    assert min(sizes) >= 7


@pytest.mark.parametrize("cuts", [5, 7, 8, 13, 17, 33])
def test_every_cut_has_its_number_and_name_on_the_axis(cuts: int) -> None:
    names = [name.removeprefix("encoder.layers.") for name in NETWORKS[cuts][:-1]]
    made = study(("B",), stages=NETWORKS[cuts], treatments=["transfer"])
    for draw, has_base in ((figures.differences, False), (figures.accuracy, True)):
        (ax,) = draw(made).axes  # type: ignore[operator]
        numbers, below = ([text.get_text() for text in ax.get_xticklabels(minor=minor)] for minor in (False, True))
        assert below[has_base:] == names
        assert numbers[has_base:] == [str(n) for n in range(1, cuts + 1)]
        assert not has_base or "base" in (numbers[0], below[0])
        assert ax.get_xlabel() == "stages copied, n"


def test_more_cuts_than_labels_fit_still_name_the_first_and_the_last() -> None:
    (ax,) = figures.accuracy(study(("B",), stages=NETWORKS[151], treatments=["transfer"], checks=2)).axes
    names = [text.get_text() for text in ax.get_xticklabels(minor=True)]
    assert names[0] == "base" and names[-1] == "stages.4.blocks.29" and len(names) < 60


def test_names_stay_with_their_cuts_where_only_some_were_run() -> None:
    (ax,) = figures.differences(study(("B",), stages=RESNET, treatments=["transfer"], layers=[2, 9])).axes
    assert list(ax.get_xticks(minor=True)) == [2, 9]
    assert [text.get_text() for text in ax.get_xticklabels(minor=True)] == ["layer1.0", "layer4.1"]


def test_a_panel_of_nothing_has_no_scale_of_n() -> None:
    (ax,) = figures.differences(study(("B",), stages=RESNET, treatments=[])).axes
    assert not ax.get_xticks().size


def test_a_study_without_names_keeps_its_axis() -> None:
    (ax,) = figures.accuracy(study(("B",), treatments=["transfer"])).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["base", *"1234567"]
    assert ax.get_xlabel() == "layers copied, n" and not list(ax.get_xticks(minor=True))


@pytest.mark.parametrize("cuts", [7, 17, 33, 151])
def test_colours_of_cuts_do_not_repeat_and_are_about_equally_light(cuts: int) -> None:
    colours = [cut_colour(n, cuts) for n in range(1, cuts + 1)]
    assert len(set(colours)) == cuts
    linear = np.array(
        [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(x)] for x in colours]
    )
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    seven = [cut_colour(n, 7) for n in range(1, 8)]
    assert colours[0] == seven[0] and colours[-1] == seven[-1]
    assert lightness.min() > 44 and lightness.max() < 71  # as those of seven


def test_the_legend_of_many_curves_names_the_first_some_and_the_last() -> None:
    labels = [style.label for style in figures.curve_styles(study(("B",), stages=NETWORKS[33]))]
    assert labels[0] == "n = 1 (stem)" and labels[6] == "n = 33 (layer4.7)" and len(labels) == 9
    assert some_cuts([1, 3, 5]) == [1, 3, 5]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_no_sentence_of_a_named_study_speaks_of_layers(seeds: Sequence[int]) -> None:
    made = study(seeds=seeds, stages=RESNET, treatments=list(made_up.LOSSES), correct=True)
    lost = (Evaluation(50, 2.78, 2.78, 1 / 16), Evaluation(100, 2.78, 2.78, 1 / 16))
    stuck = replace(
        made, results=tuple(replace(r, evaluations=lost) if r.treatment == "random" else r for r in made.results)
    )
    for recorded in (made, stuck):
        read = check_stands_alone(page(recorded))
        said = [read.text.split("How to cite The study:")[0], printed(table(recorded))]
        said += [printed(advice_table(recorded, advise(recorded, target))) for target in ("A", "B")]
        said += cautions(recorded, summarise(recorded.results, facts=recorded.facts))
        for text in said:
            assert not re.search(r"\blayers?\b(?!\d)", text, re.IGNORECASE), re.findall(r".{30}\blayers?\b.{30}", text)


def test_findings_name_the_cuts_that_they_speak_of() -> None:
    text = " ".join(finding.text for finding in findings(study(stages=RESNET)))
    assert re.search(r"copying and freezing up to stage 3 \(layer1\.1\) costs less than 2 points", text)
    assert "from stage 4 (layer2.0) it costs" in text and "at n = 9 (layer4.1)" in text
    assert "at n = 1 (conv1) and fall to" in text


def test_advice_names_the_stage_to_copy_up_to() -> None:
    made = study(("B",), stages=RESNET, treatments=["transfer"], layers=[1, 4])
    better = tuple(
        replace(r, evaluations=(Evaluation(9, 1.0, 1.0, 0.9),)) if (r.treatment, r.n) == ("transfer", 4) else r
        for r in made.results
    )
    text = " ".join(printed(advice_table(made, advise(replace(made, results=better), "B"))).split())
    assert "Best on B: copy the first 4 stages (up to layer2.0) and freeze them (transfer, n = 4)" in text
    assert "Stages: 1 conv1, 4 layer2.0." in text


@pytest.mark.parametrize("cuts", [5, 8, 13, 33])
def test_tables_of_named_studies_fit_80_columns(cuts: int) -> None:
    made = study(seeds=(0, 1), stages=NETWORKS[cuts], treatments=list(made_up.LOSSES))
    for text in (printed(table(made)), printed(advice_table(made, advise(made, "B")))):
        assert "…" not in text and max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in printed(table(made)).splitlines()]
    last = NETWORKS[cuts][-2].removeprefix("encoder.layers.")
    found = [row for row in rows if row[:2] == [str(cuts), last]]
    assert len(found) >= 3  # of top-1, of pretrained networks, of effects
    assert sum(row.count("(") + sum("(" in cell for cell in row) for row in found) >= 7  # every treatment


def test_spreadsheets_end_with_the_name_of_the_cut() -> None:
    made = study(("B",), stages=RESNET, treatments=["transfer"], layers=[4])
    rows = list(csv.DictReader(results_csv(made).splitlines()))
    assert list(rows[0])[-1] == "stage"
    assert {row["name"]: row["stage"] for row in rows} == {
        "baseA": "", "baseB": "", "B10B+": "fc", "A4B": "layer2.0"
    }  # fmt: skip
    means = list(csv.DictReader(means_csv({"x": made}).splitlines()))
    assert {(row["n"], row["stage"]) for row in means} == {("4", "layer2.0"), ("10", "fc")}
    unnamed = csv.DictReader(results_csv(study(("B",), layers=[4])).splitlines())
    assert {row["stage"] for row in unnamed} == {""}


def test_the_papers_curves_are_left_out_of_other_networks_and_the_page_says_so(tmp_path: Path) -> None:
    halves = paper.load_results("random")
    for stages, is_shown in (((), True), (PAPER_STAGES, True), (RESNET, False)):
        made = study(stages=stages, treatments=["transfer"], layers=[1, 4])
        text = Reader(page(made, overlay=halves)).text
        assert ("Broad and pale" in text) == ("the paper's, in the same colours" in text.replace("’", "'")) == is_shown
        assert (NO_OVERLAY in text) != is_shown
        (ax,) = figures.differences(made, overlay=halves).axes
        assert any(line.get_linewidth() > 4 for line in ax.lines) == is_shown
        assert NO_OVERLAY not in Reader(page(made)).text


def test_the_command_says_that_the_papers_curves_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.toml").write_text("")
    with Records(tmp_path / "study.db") as records:
        records.describe({"stages": list(RESNET)}, {})
    assert cli.run(["report", str(tmp_path), "--paper"]) == 0
    assert NO_OVERLAY in " ".join(capsys.readouterr().out.split())


def test_wide_figures_are_wide_on_the_page() -> None:
    many, few = (page(study(("B",), stages=NETWORKS[cuts], treatments=["transfer"], checks=3)) for cuts in (33, 8))
    assert many.count('<svg class="wide"') >= 2 and '<svg class="wide"' not in few
    check_stands_alone(many)


def test_filters_that_read_the_image_are_found_by_their_three_channels(tmp_path: Path) -> None:
    made = replace(study(("B",), stages=RESNET, treatments=["transfer"], layers=[3]), folder=tmp_path)
    (tmp_path / "weights").mkdir()
    random = np.random.default_rng(0)
    state = {
        "blocks.0.weight": random.normal(size=(8, 8, 3, 3)), "squeeze.weight": random.normal(size=(8, 3, 1, 1)),
        "patch_embed.proj.weight": random.normal(size=(12, 3, 4, 4)), "head.bias": random.normal(size=3),
    }  # fmt: skip
    save_file({name: x.astype(np.float32) for name, x in state.items()}, tmp_path / "weights" / "baseB.s0.safetensors")
    read = check_stands_alone(page(made))
    assert "Filters of patch_embed.proj of baseB" in read.images
    assert "The filters of patch_embed.proj of each base" in read.text
    (ax,) = figures.filters(made).axes
    assert ax.get_title("left") == "baseB: patch_embed.proj, 12 filters of 4 x 4"
    assert (write_report(made, tmp_path).parent / "filters.svg").is_file()
