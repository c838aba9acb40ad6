"""The figures show the numbers they are given, and the same numbers give the same bytes."""

from __future__ import annotations

import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fasttransfer.analysis import summarise
from fasttransfer.records import Evaluation, Recorded
from fasttransfer.report import figures
from fasttransfer.report.svg import inline, png, svg

ALL = {"accuracy": figures.accuracy, "parts": figures.parts, "learning": figures.learning}


def line_of(ax: Axes, treatment: str) -> np.ndarray:
    """The heights of the mean line of `treatment`."""
    style = figures.STYLES[treatment]
    (found,) = (line for line in ax.lines if line.get_color() == style.colour and line.get_linewidth() == 1.6)
    return np.asarray(found.get_ydata(), dtype=float)


def steps_of(line: Line2D) -> list[float]:
    """Where along the axis the points of `line` are."""
    return np.asarray(line.get_xdata(), dtype=float).tolist()


def test_lines_are_means_and_dots_are_runs(study: Callable[..., Recorded]) -> None:
    made = study(("A", "B"), (0, 1, 2))
    figure = figures.accuracy(made)
    on_a, on_b, both = figure.axes
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
    looks = {(s.line, s.marker, s.filled) for s in figures.STYLES.values()}
    assert len(looks) == len(figures.STYLES)


def test_bars_add_up_to_what_is_lost(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,))
    (ax,) = figures.parts(made).axes
    heights: dict[int, float] = {}
    for bar in ax.patches:
        assert isinstance(bar, Rectangle)
        n = round(bar.get_x() + bar.get_width() / 2)
        heights[n] = heights.get(n, 0.0) + bar.get_height()
    lost = {row.n: 100 * row.lost.value for row in summarise(made.results).rows if row.lost}
    assert heights == pytest.approx(lost)


def test_diverged_networks_are_crossed_and_not_joined(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,), diverged=["R7B"])
    ax = figures.top1(made, "B").axes[0]
    assert len(line_of(ax, "random")) == 6
    (cross,) = (line for line in ax.lines if line.get_marker() == "x")
    assert steps_of(cross) == [7]


@pytest.mark.parametrize("name", ALL)
def test_same_results_same_bytes(study: Callable[..., Recorded], name: str) -> None:
    first, second = (svg(ALL[name](study(seeds=(0, 1), layers=[2, 5]))) for _ in range(2))
    assert first == second
    ET.fromstring(first)


def test_other_results_other_bytes(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,), layers=[3])
    better = replace(made.results[-1], evaluations=(Evaluation(1, None, 1.0, 0.9),))
    changed = replace(made, results=(*made.results[:-1], better))
    for draw in (figures.accuracy, figures.learning):
        assert svg(draw(made)) != svg(draw(changed))


def test_same_bytes_in_another_process_and_under_another_style(study: Callable[..., Recorded]) -> None:
    expected = svg(figures.parts(study(("B",), (0,))))
    code = f"""
import importlib.util, matplotlib, sys
matplotlib.rcParams["font.size"] = 22
matplotlib.rcParams["axes.facecolor"] = "red"
spec = importlib.util.spec_from_file_location("made", {str(__file__).replace("test_figures", "conftest")!r})
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
from fasttransfer.report import figures, svg
sys.stdout.buffer.write(svg.svg(figures.parts(made.made_up(("B",), (0,)))))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    assert found.stdout == expected


def test_figures_drawn_at_once_do_not_disturb_each_other(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,))
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
def test_a_study_under_way(study: Callable[..., Recorded], name: str) -> None:
    def told(done: float) -> list[bool]:
        figure = ALL[name](study(done=done))
        assert svg(figure).startswith(b"<?xml")
        return [any(t.get_text() == "nothing to compare yet" for t in ax.texts) for ax in figure.axes]

    # The first network's curve is there from its first check; a comparison needs two finished ones.
    assert all(told(0.0)) == (name != "learning")
    assert not told(0.4)[0]


def test_png(study: Callable[..., Recorded]) -> None:
    assert png(figures.accuracy(study())).startswith(b"\x89PNG")


def test_inline_figures_share_no_id(study: Callable[..., Recorded]) -> None:
    made = study(("B",), (0,))
    texts = [inline(figures.top1(made, "B"), name, 'a "b" <c> & d') for name in ("one", "two")]
    ids = [{element.get("id") for element in ET.fromstring(text).iter()} - {None} for text in texts]
    assert ids[0] and not ids[0] & ids[1]
    for text, own in zip(texts, ids, strict=True):
        root = ET.fromstring(text)
        assert root.get("aria-label") == 'a "b" <c> & d'
        for element in root.iter():
            for key, value in element.attrib.items():
                if key.endswith("href"):
                    assert value.removeprefix("#") in own


def test_long_curves_are_thinned_but_keep_their_end(study: Callable[..., Recorded]) -> None:
    (ax,) = figures.learning_of(study(("B",), (0,), checks=450), "base").axes
    line = ax.lines[0]
    assert len(steps_of(line)) <= 151
    assert steps_of(line)[-1] == 450 * 50
