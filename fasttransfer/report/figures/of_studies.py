"""The figures of several studies: side by side against n, and their bases against the volume of training images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from fasttransfer.core.intervals import Estimate
from fasttransfer.report import drawing
from fasttransfer.report.analysis.comparison import by_network, runs_by_volume
from fasttransfer.report.analysis.summary import Summary, summarise
from fasttransfer.report.cut_axis import cut_axis
from fasttransfer.report.drawing import STYLES, Style
from fasttransfer.report.numbers import thousands
from fasttransfer.report.svg import settings
from fasttransfer.study.chance import mean_chance
from fasttransfer.study.records import Score, StudyResults

_CROSS: dict[str, Any] = {"marker": "x", "markersize": 5, "linestyle": "", "zorder": 4, "clip_on": False}


@settings()
def volume(studies: Sequence[StudyResults], score: Score = "last", *, keys: bool = True) -> Figure:
    """Draw top-1 of the bases against the training images per class, on a logarithmic axis.

    A network that ended no better than chance is a cross. `studies` are of one kind and differ in `--per-class`; each
    task is a line, every run a point. The legend is there where there is more than one task.
    """
    figure, (ax,) = drawing.panels(1)
    points = runs_by_volume(studies, score)
    ax.set_title("Base networks on fewer images")
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("training images per class (at most)")
    styles = drawing.study_styles(f"task {task}" for task in points)
    for runs, style in zip(points.values(), styles.values(), strict=True):
        learned = {k: [value for value, is_lost in values if not is_lost] for k, values in runs.items()}
        means = [(k, math.fsum(values) / len(values)) for k, values in learned.items() if values]
        drawing.line(ax, means, style, [(k, value) for k, values in learned.items() for value in values])
        lost = [(k, 100 * value) for k, values in runs.items() for value, is_lost in values if is_lost]
        ax.plot([k for k, _ in lost], [value for _, value in lost], color=style.colour, **_CROSS)
    drawing.logarithmic_axis(ax, {k: thousands(k) for runs in points.values() for k in runs})
    levels = [one for study in studies for task in points if (one := mean_chance(study.facts, [task])) is not None]
    if levels:
        drawing.chance(ax, min(levels))
    ax.set_ylim(bottom=0)
    drawing.grid(ax)
    drawing.nothing(ax, bool(points))
    if keys and len(points) > 1:
        drawing.legend(figure, list(styles.values()))
    return figure


@settings()
def comparison(
    studies: Mapping[str, StudyResults],
    score: Score = "last",
    *,
    treatments: Sequence[str] = ("transfer", "random"),
    keys: bool = True,
) -> Figure:
    """Draw studies side by side: points from the base against n, a line for each study and treatment, with intervals.

    With the frozen transfer of random and of natural/man-made halves and the random layers, it is the paper's figure 3.
    `studies` are named in the order of the legend. Studies differ by colour and marker, treatments by their lines.
    Networks with other stages have panels of their own, because n of one is not n of another.
    """
    looks = list(drawing.study_styles(studies).values())
    summaries = [summarise(study.results, score=score, facts=study.facts) for study in studies.values()]
    networks = by_network(list(studies.values()))
    axes_of_n = [
        cut_axis([n for i in members for name in treatments for n in _from_base(summaries[i], name)], stages)
        for stages, members in networks
    ]
    size = max(axis.size[0] for axis in axes_of_n), max(axis.size[1] for axis in axes_of_n)
    figure, axes = drawing.panels(len(networks), columns=2, size=size)
    styles: list[Style] = []
    for (_, members), axis, ax in zip(networks, axes_of_n, axes, strict=True):
        ax.set_title(f"{' and '.join(treatments).capitalize()} networks")
        ax.set_ylabel("points of top-1 from the base")
        drawing.across(ax, 0)
        drawn: list[Estimate] = []
        for place, i in enumerate(members):
            for treatment in treatments:
                style = replace(
                    looks[i],
                    label=f"{looks[i].label}: {treatment}" if len(treatments) > 1 else looks[i].label,
                    line=STYLES[treatment].line,
                    filled=STYLES[treatment].filled,
                    shift=0.08 * (place - (len(members) - 1) / 2),
                )
                if found := drawing.estimates(ax, _from_base(summaries[i], treatment), style):
                    drawn += found
                    styles.append(style)
        drawing.fit(ax, drawn)
        axis.draw(ax)
        drawing.nothing(ax, bool(drawn))
    if keys and styles:
        drawing.legend(figure, styles)
    return figure


def _from_base(summary: Summary, treatment: str) -> dict[int, Estimate]:
    """Return n -> difference from the base."""
    return {row.n: row.difference[treatment] for row in summary.rows if treatment in row.difference}
