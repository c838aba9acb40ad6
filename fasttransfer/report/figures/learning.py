"""The figure of the learning curves."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fasttransfer.report import drawing
from fasttransfer.report.analysis.summary import targets_of
from fasttransfer.report.drawing import STYLES, Style, cut_colour
from fasttransfer.report.numbers import thousands
from fasttransfer.report.stages import Stages
from fasttransfer.report.svg import INK, settings
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.records import Result, StudyResults

_MOST_CHECKS = 150  # drawn of a learning curve: more than there are pixels for only makes the file long


@settings()
def learning(recorded: StudyResults, treatment: str | None = None, *, keys: bool = True) -> Figure:
    """Draw validation top-1 against steps of every network, a panel for each treatment, or for `treatment` alone.

    The first task is drawn solid, the second dashed; a cross ends the curve of a network that diverged or
    whose training was ended because it was stuck.
    """
    treatments = [treatment] if treatment else curves_of(recorded) or ["base"]
    figure, axes = drawing.panels(len(treatments), columns=2, sharey=True, size=(drawing.PANEL[0], 2.1))
    for name, ax in zip(treatments, axes, strict=True):
        _curves(ax, recorded, name)
        ax.label_outer()  # one scale for all: what is said once is enough
    top = max((e.val_top1 for r in recorded.results for e in r.evaluations), default=0.0)
    axes[0].set_ylim(0, 105 * top if top > 0 else 100)  # one scale, whatever is drawn of it
    if keys:
        drawing.legend(figure, curve_styles(recorded))
    return figure


def curves_of(recorded: StudyResults) -> list[str]:
    """Return the treatments that have learning curves."""
    started = {result.treatment for result in recorded.results if len(result.evaluations) > 1}
    return [name for name in STYLES if name in started]


def curve_styles(recorded: StudyResults) -> list[Style]:
    """Return the legend of the learning curves: n by colour, of many n some, and tasks by line."""
    stages = Stages.of(recorded.facts)
    cuts = sorted({r.n for r in recorded.results if r.treatment not in (BASE, BASE_PLUS)})
    styles = [Style(stages.at(n), cut_colour(n, stages.cuts)) for n in drawing.some_cuts(cuts)]
    if len(tasks := _curve_tasks(recorded)) > 1:
        styles += [Style(f"task {tasks[0]}", INK), Style(f"task {tasks[1]}", INK, line="--")]
    return styles


def _curve_tasks(recorded: StudyResults) -> list[str]:
    """Return the tasks that have learning curves, those that are compared first."""
    compared = targets_of(recorded.results)
    started = {result.target for result in recorded.results if result.evaluations}
    return sorted(started, key=lambda task: (task not in compared, task))


def _curves(ax: Axes, recorded: StudyResults, treatment: str) -> None:
    ax.set_title(STYLES[treatment].label)
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("steps")
    drawing.grid(ax)
    results = [r for r in recorded.results if r.treatment == treatment and r.evaluations]
    first = next(iter(_curve_tasks(recorded)), "A")
    for result in results:
        checks = _thin(result)
        n = 0 if treatment == BASE_PLUS else result.n  # base+, which copies all, as its base
        colour = cut_colour(n, Stages.of(recorded.facts).cuts)
        line = "-" if result.target == first else "--"
        ax.plot([step for step, _ in checks], [100 * v for _, v in checks], color=colour, linestyle=line, linewidth=0.9)
        if result.state in ("diverged", "stuck"):
            step, value = checks[-1]
            ax.plot([step], [100 * value], color=colour, marker="x", markersize=6, zorder=4)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: thousands(value))
    drawing.nothing(ax, bool(results))


def _thin(result: Result) -> list[tuple[int, float]]:
    checks = [(e.step, e.val_top1) for e in result.evaluations if math.isfinite(e.val_top1)]
    stride = math.ceil(len(checks) / _MOST_CHECKS)
    return checks if stride <= 1 else [*checks[:-1:stride], checks[-1]]
