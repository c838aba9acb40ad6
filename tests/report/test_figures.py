"""The figures show the numbers they are given, and the same numbers give the same bytes."""

from __future__ import annotations

import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import made_up
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.text import Text

from fasttransfer.report import figures
from fasttransfer.report.analysis.comparison import runs_by_volume
from fasttransfer.report.analysis.effects import CO_ADAPTATION, FREEZING, FROZEN_COST, LOST, SPECIFICITY
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.drawing import PART_STYLES, STYLES
from fasttransfer.report.filters import montage, smoothness
from fasttransfer.report.svg import pdf, png, svg
from fasttransfer.report.template import element
from fasttransfer.study import paper
from fasttransfer.study.records import Evaluation, Score, StudyResults

ALL = {
    "accuracy": figures.accuracy,
    "differences": figures.differences,
    "decomposition": figures.decomposition,
    "learning": figures.learning,
}


def line_of(ax: Axes, treatment: str) -> np.ndarray:
    """The heights of the mean line of `treatment`."""
    style = STYLES[treatment]
    (found,) = (line for line in ax.lines if line.get_color() == style.colour and line.get_linewidth() == 1.4)
    return np.asarray(found.get_ydata(), dtype=float)


def steps_of(line: Line2D) -> list[float]:
    """Where along the axis the points of `line` are."""
    return np.asarray(line.get_xdata(), dtype=float).tolist()


def test_lines_are_means_and_dots_are_runs(study: Callable[..., StudyResults]) -> None:
    made = study(("A", "B"), (0, 1, 2))
    on_a, on_b = figures.accuracy(made).axes
    (both,) = figures.differences(made).axes
    for ax, target in ((on_a, "A"), (on_b, "B")):
        rows = summarise(made.results, target=target).rows
        for treatment in ("selffer", "selffer+", "transfer", "transfer+", "random"):
            expected = [100 * row.top1[treatment].value for row in rows]
            np.testing.assert_allclose(line_of(ax, treatment), expected)
    rows = summarise(made.results).rows
    np.testing.assert_allclose(line_of(both, "transfer"), [100 * row.difference["transfer"].value for row in rows])
    dots = [line for line in on_b.lines if line.get_linestyle() == "None" and len(steps_of(line)) == 21]
    assert len(dots) == 5  # three seeds at seven n, for each treatment


def test_treatments_differ_by_more_than_colour() -> None:
    looks = {(s.line, s.marker, s.filled) for s in STYLES.values()}
    assert len(looks) == len(STYLES)


def heights(ax: Axes, colour: str, n: int) -> float:
    """How much of the areas of `colour` stands at n; negative below the base."""
    found = 0.0
    for area in ax.collections:
        if to_hex(area.get_facecolor()[0]) == colour:  # type: ignore[index]
            for path in area.get_paths():
                edges = [y for x, y in np.asarray(path.vertices) if abs(x - n) < 1e-9]
                if edges:
                    size = max(edges) - min(edges)
                    found += size if max(edges) > 1e-9 else -size
    return found


@pytest.mark.parametrize("layers", [range(1, 8), [2, 5], [3]])
def test_areas_add_up_to_what_is_lost(study: Callable[..., StudyResults], layers: Sequence[int]) -> None:
    made = study(("B",), (0,), layers=layers)
    (ax,) = figures.decomposition(made).axes
    for row in summarise(made.results).rows:
        assert row[FROZEN_COST] and row[FREEZING] and row[SPECIFICITY]
        parts = {part: row.effects[part].value for part in (FREEZING, SPECIFICITY)}
        for part, value in parts.items():
            assert heights(ax, PART_STYLES[part].colour, row.n) == pytest.approx(-100 * value, abs=1e-6)
        assert sum(parts.values()) == pytest.approx(row[FROZEN_COST].value)
        (diamond,) = (line for line in ax.lines if steps_of(line) == [row.n])
        assert np.asarray(diamond.get_ydata(), dtype=float) == pytest.approx([-100 * row[FROZEN_COST].value])


def test_without_fine_tuned_selffers_the_pieces_are_the_papers(study: Callable[..., StudyResults]) -> None:
    halves = paper.load_results("random")
    cases: list[tuple[StudyResults, Score]]
    cases = [(study(("B",), treatments=["selffer", "transfer"]), "last"), (halves, "best10")]
    for made, score in cases:
        (ax,) = figures.decomposition(made, score).axes
        assert "paper" in ax.get_title("left") and "from the base" in ax.get_ylabel()
        for row in summarise(made.results, score=score).rows:
            assert row[LOST] and row[CO_ADAPTATION]
            found = [heights(ax, PART_STYLES[part].colour, row.n) for part in (CO_ADAPTATION, SPECIFICITY)]
            assert found[0] == pytest.approx(-100 * row[CO_ADAPTATION].value, abs=1e-6)
            assert sum(found) == pytest.approx(-100 * row[LOST].value, abs=1e-6)


def test_base_plus_is_a_line_across_and_a_panel_of_curves(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), missing=0.09)
    (ax,) = figures.accuracy(made).axes
    height = summarise(made.results).base_plus
    assert height is not None
    (across,) = (line for line in ax.lines if line.get_linewidth() == 0.6)
    assert across.get_ydata() == pytest.approx([100 * height.value] * 2)
    assert "base+" in figures.curves_of(made)
    labels = [style.label for style in figures.curve_styles(made)]
    assert labels == [*(f"n = {n}" for n in range(1, 8)), "task B", "task A"]
    assert not [line for line in figures.accuracy(study(base_plus=False)).axes[0].lines if line.get_linewidth() == 0.6]


def test_smoothness_tells_structure_from_noise() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=(96, 3, 11, 11)).astype(np.float32)
    assert abs(smoothness(noise)) < 0.02
    angles = np.linspace(0, np.pi, 11)
    waves = np.sin(angles[:, None] + angles) * random.normal(size=(96, 3, 1, 1))
    assert smoothness(waves.astype(np.float32)) > 0.9
    assert smoothness(np.zeros((2, 3, 5, 5), np.float32)) == 0
    stripes = np.tile(np.array([1, -1, 1, -1, 1], np.float32), (2, 3, 5, 1))
    assert smoothness(stripes) == pytest.approx(0)  # as rough along one axis as it is smooth along the other


def test_an_n_that_was_not_measured_is_not_filled(study: Callable[..., StudyResults]) -> None:
    (ax,) = figures.decomposition(study(("B",), (0,), layers=[2, 5])).axes
    filled = np.concatenate([np.asarray(path.vertices)[:, 0] for area in ax.collections for path in area.get_paths()])
    assert not ((filled > 2.31) & (filled < 4.69)).any()


def test_a_long_interval_leaves_the_panel_and_not_the_scale(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0, 1), treatments=["transfer"], layers=[3])
    worse = replace(made.results[-1], evaluations=(Evaluation(1, None, 1.0, 0.6),))
    made = replace(made, results=(*made.results[:-1], worse))
    (ax,) = figures.differences(made).axes
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines])
    low, high = ax.get_ylim()
    (row,) = summarise(made.results).rows
    half = row.difference["transfer"].half
    assert half is not None and 200 * half > high - low
    assert high - low < 2.3 * np.ptp(drawn)


def test_the_overlay_is_the_other_studys_differences(study: Callable[..., StudyResults]) -> None:
    halves = paper.load_results("random")
    (ax,) = figures.differences(study(layers=[1, 4, 5]), "best10", overlay=halves).axes
    style = STYLES["transfer"]
    (line,) = (line for line in ax.lines if line.get_linewidth() > 4 and line.get_color() == style.colour)
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), [0.31, -2.53, -4.71], atol=0.01)
    plain = figures.differences(study(layers=[1, 4, 5]), "best10").axes[0]
    assert not [line for line in plain.lines if line.get_linewidth() > 4]


def test_pooled_accuracy_has_every_network_of_the_paper() -> None:
    (ax,) = figures.accuracy(paper.load_results("random"), "best10", pooled=True).axes
    colour = STYLES["transfer"].colour
    (dots,) = (line for line in ax.lines if line.get_color() == colour and line.get_linestyle() == "None")
    assert len(steps_of(dots)) == 56
    assert ax.get_ylim()[0] > 50  # all lie between 53 and 65 %: from zero they would be one line


def test_comparison_is_the_papers_figure_3() -> None:
    studies = {which: paper.load_results(which) for which in ("random", "natural-manmade", "full")}
    (ax,) = figures.comparison(studies, "best10").axes
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines if len(steps_of(line)) == 7]
    np.testing.assert_allclose([curve[-1] for curve in curves], [-8.26, -25.0, -56.2], atol=0.1)


def test_networks_of_the_paper_that_failed_are_crosses_in_its_volume_figure() -> None:
    (ax,) = figures.volume([paper.load_results("reduced")], "best10").axes
    (curve,) = (line for line in ax.lines if line.get_linewidth() == 1.4)
    (crosses,) = (line for line in ax.lines if line.get_marker() == "x")
    assert steps_of(curve) == [250, 500, 750, 1000, 1300]
    assert steps_of(crosses) == [1, 2, 5, 10, 25, 50, 100]
    assert ax.get_xscale() == "log"


def test_volume_of_own_studies(study: Callable[..., StudyResults]) -> None:
    full = study(layers=[1])
    few = replace(full, facts={**full.facts, "train_pictures": {"A": 320, "B": 320}})
    points = runs_by_volume([full, few])
    assert {task: list(runs) for task, runs in points.items()} == {"A": [20, 300], "B": [20, 300]}
    assert len(figures.volume([full, few]).axes[0].get_lines()) >= 2
    stuck = (Evaluation(1, None, 3.0, 1 / 16),)  # worse than an even guess among 16
    failed = replace(few, results=(replace(few.results[0], evaluations=stuck), *few.results[1:]))
    assert [failed for ((_, failed),) in runs_by_volume([full, failed])["A"].values()] == [True, False]


def test_equal_scores_have_a_readable_scale(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["transfer"], layers=[3])
    same = (Evaluation(1, None, 1.0, 0.5),)
    made = replace(made, results=tuple(replace(r, evaluations=same) for r in made.results))
    (ax,) = figures.differences(made).axes
    low, high = ax.get_ylim()
    assert high - low >= 0.2
    (ax,) = figures.differences(study(done=0)).axes
    assert not ax.get_yticks().size  # where there is nothing, there is no scale


def test_legible_at_column_width(study: Callable[..., StudyResults]) -> None:
    """A panel is a column of a paper wide, and nothing in it is written smaller than 7 points."""
    made = study(seeds=(0, 1))
    studies = {"natural and man-made, ten epochs": made, "random halves, ten epochs": made}
    for figure in (
        figures.differences(made, overlay=paper.load_results("random")),
        figures.decomposition(made),
        figures.accuracy(made, target="A"),
        figures.comparison(studies),
    ):
        assert figure.get_size_inches()[0] == 3.3
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 7
        # Nothing sticks out: what is drawn lies inside of the figure.
        figure.draw_without_rendering()
        inside = figure.bbox.padded(1)
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                assert inside.x0 <= box.x0 and box.x1 <= inside.x1, text.get_text()


def test_diverged_networks_are_crossed_and_not_joined(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), diverged=["R7B"])
    ax = figures.accuracy(made, target="B").axes[0]
    assert len(line_of(ax, "random")) == 6
    (cross,) = (line for line in ax.lines if line.get_marker() == "x")
    assert steps_of(cross) == [7]


@pytest.mark.parametrize("name", ALL)
def test_same_results_same_bytes(study: Callable[..., StudyResults], name: str) -> None:
    first, second = (svg(ALL[name](study(seeds=(0, 1), layers=[2, 5]))) for _ in range(2))
    assert first == second
    ET.fromstring(first)


def test_other_results_other_bytes(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["transfer"], layers=[3])
    better = replace(made.results[-1], evaluations=(Evaluation(1, None, 1.0, 0.9),))
    changed = replace(made, results=(*made.results[:-1], better))
    for draw in (figures.accuracy, figures.learning):
        assert svg(draw(made)) != svg(draw(changed))


def test_same_bytes_in_another_process_and_under_another_style(study: Callable[..., StudyResults]) -> None:
    expected = svg(figures.decomposition(study(("B",), (0,))))
    code = f"""
import matplotlib, sys
matplotlib.rcParams["font.size"] = 22
matplotlib.rcParams["axes.facecolor"] = "red"
sys.path.append({str(Path(made_up.__file__).parent)!r})
from made_up import made_up
from fasttransfer.report import figures, svg
sys.stdout.buffer.write(svg.svg(figures.decomposition(made_up(("B",), (0,)))))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    assert found.stdout == expected


def test_figures_drawn_at_once_do_not_disturb_each_other(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), treatments=["selffer", "transfer"], layers=[2, 5])
    expected = {name: svg(draw(made)) for name, draw in ALL.items()}
    found: dict[str, bytes] = {}
    threads = [threading.Thread(target=lambda name=name: found.__setitem__(name, svg(ALL[name](made)))) for name in ALL]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_pyplot_is_left_alone() -> None:
    code = "import sys, fasttransfer.report.page; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", ALL)
def test_a_study_under_way(study: Callable[..., StudyResults], name: str) -> None:
    def told(done: float) -> list[bool]:
        figure = ALL[name](study(done=done))
        assert svg(figure).startswith(b"<?xml")
        return [any(t.get_text() == "nothing to compare yet" for t in ax.texts) for ax in figure.axes]

    # The first network's curve is there from its first check; a comparison needs two finished ones.
    assert all(told(0.0)) == (name != "learning")
    assert not told(0.4)[0]


def test_png_and_pdf(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,), layers=[2])
    assert png(figures.accuracy(made)).startswith(b"\x89PNG")
    first, second = (pdf(figures.accuracy(made)) for _ in range(2))
    assert first.startswith(b"%PDF") and first == second
    assert b"CreationDate" not in first
    assert b"/Type3" not in first  # letters as outlines that a publisher refuses


def test_inline_figures_share_no_id(study: Callable[..., StudyResults]) -> None:
    made = study(("B",), (0,))
    texts = [element(partial(figures.accuracy, made, target="B"), name, 'a "b" <c> & d') for name in ("one", "two")]
    ids = [{part.get("id") for part in ET.fromstring(text).iter()} - {None} for text in texts]
    assert ids[0] and not ids[0] & ids[1]
    for text, own in zip(texts, ids, strict=True):
        root = ET.fromstring(text)
        assert root.get("aria-label") == 'a "b" <c> & d'
        for part in root.iter():
            for key, value in part.attrib.items():
                if key.endswith("href"):
                    assert value.removeprefix("#") in own


def test_long_curves_are_thinned_but_keep_their_end(study: Callable[..., StudyResults]) -> None:
    (ax,) = figures.learning(study(("B",), (0,), checks=450), "base").axes
    line = ax.lines[0]
    assert len(steps_of(line)) <= 151
    assert steps_of(line)[-1] == 450 * 50


@pytest.mark.parametrize(("count", "kernel", "across"), [(96, 11, 12), (32, 7, 8), (7, 5, 3)])
def test_filters_fill_their_grid(count: int, kernel: int, across: int) -> None:
    weights = np.random.default_rng(0).normal(size=(count, 3, kernel, kernel)).astype(np.float32)
    weights[0] = 0
    sheet = montage(weights)
    assert sheet.shape[1] == across * (kernel + 1) - 1
    assert (sheet[..., 3] == 255).sum() == count * kernel * kernel  # the gaps are clear, also behind an unfinished row
    assert np.unique(sheet[:kernel, :kernel, :3]).tolist() == [128]  # zero is middle grey
    second = sheet[:kernel, kernel + 1 : 2 * kernel + 1, :3].astype(int)
    largest = np.unravel_index(np.abs(weights[1]).argmax(), weights[1].shape)
    assert second[largest[1], largest[2], largest[0]] in (0, 255)


def test_filters_of_a_folder_without_weights_say_so(study: Callable[..., StudyResults]) -> None:
    (ax,) = figures.filters(study()).axes
    assert [text.get_text() for text in ax.texts] == ["no weights here"]
