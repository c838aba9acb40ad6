"""The figures of a study, one function each: records in, a matplotlib Figure out, pyplot left alone.

In a notebook: `accuracy(fasttransfer.records.read(folder))`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fasttransfer.analysis import (
    Estimate,
    Score,
    Summary,
    chance,
    drops,
    score_of,
    summarise,
    targets_of,
)
from fasttransfer.records import Recorded, Result
from fasttransfer.report.svg import FAINT, INK, PAPER, settings


@dataclass(frozen=True)
class Style:
    """How a treatment looks everywhere, never by colour alone: frozen solid and filled, fine-tuned not."""

    label: str
    colour: str  # of Okabe and Ito's palette, told apart by colour-blind readers
    marker: str
    line: Literal["-", "--", ":"]
    filled: bool
    shift: float  # of its points along n, so that treatments do not hide each other


STYLES = {
    "base": Style("base", INK, "D", "-", True, 0.0),
    "selffer": Style("selffer, frozen", "#0072b2", "o", "-", True, -0.10),
    "selffer+": Style("selffer+, fine-tuned", "#56b4e9", "o", "--", False, -0.05),
    "transfer": Style("transfer, frozen", "#d55e00", "s", "-", True, 0.10),
    "transfer+": Style("transfer+, fine-tuned", "#e69f00", "s", "--", False, 0.05),
    "random": Style("random, frozen", "#009e73", "^", ":", True, 0.0),
}
PART_COLOURS = {"co-adaptation": STYLES["selffer"].colour, "specificity": STYLES["transfer"].colour}
# From warm (n = 1) to cold (n = 7), all of middle lightness so that they show on a light and on a dark page.
_LAYER_COLOURS = ("#dd9a1f", "#e2743c", "#d65468", "#b8478f", "#8f4fb0", "#6a62c9", "#3f83d6")
_PANEL = (3.9, 3.2)  # inches
_MOST_CHECKS = 150  # drawn of a learning curve: more than there are pixels for only makes the file long


@settings()
def accuracy(recorded: Recorded, score: Score = "last") -> Figure:
    """Top-1 against n for each target, and beside it the differences from the base, paired and averaged."""
    targets = targets_of(recorded.results)
    figure, axes = _panels(len(targets) + 1, columns=3)
    for target, ax in zip(targets, axes, strict=False):
        _top1(ax, recorded, target, score)
    _differences(axes[-1], recorded, score)
    treatments = summarise(recorded.results).treatments
    shown = [name for name in STYLES if name == "base" or name in treatments]
    _legend(figure, [key(name) for name in shown])
    return figure


@settings()
def top1(recorded: Recorded, target: str, score: Score = "last") -> Figure:
    """Top-1 against n on one target: every run a point, the mean a line, the base and chance across."""
    figure, (ax,) = _panels(1)
    _top1(ax, recorded, target, score)
    return figure


@settings()
def differences(recorded: Recorded, score: Score = "last") -> Figure:
    """Points above or below the base of the same target and seed, and their means; random layers left out."""
    figure, (ax,) = _panels(1)
    _differences(ax, recorded, score)
    return figure


@settings()
def parts(recorded: Recorded, score: Score = "last") -> Figure:
    """What the frozen transfer loses to co-adaptation and to specificity: each target, and their mean."""
    targets = targets_of(recorded.results)
    chosen: list[str | None] = [*targets, None] if len(targets) > 1 else [None]
    figure, axes = _panels(len(chosen), columns=3, sharey=True)
    for target, ax in zip(chosen, axes, strict=True):
        _parts(ax, recorded, target, score)
    _label_first_column(axes)
    colours = PART_COLOURS.items()
    handles: list[Any] = [
        Patch(facecolor=colour, hatch=_HATCHES[name], edgecolor=PAPER, label=name) for name, colour in colours
    ]
    handles.append(Line2D([], [], color=INK, marker="D", markersize=4, linestyle="", label="lost by the transfer"))
    _legend(figure, handles)
    return figure


@settings()
def parts_of(recorded: Recorded, target: str | None = None, score: Score = "last") -> Figure:
    """As `parts`, one panel: of `target`, or of the mean over targets; one scale for all of a study."""
    figure, (ax,) = _panels(1)
    _parts(ax, recorded, target, score)
    ax.set_ylim(parts(recorded, score).axes[0].get_ylim())
    return figure


@settings()
def learning(recorded: Recorded) -> Figure:
    """Validation top-1 against steps of every network, a panel for each treatment."""
    treatments = curves_of(recorded) or ["base"]
    figure, axes = _panels(len(treatments), columns=3, sharey=True, height=2.6)
    for treatment, ax in zip(treatments, axes, strict=False):
        _curves(ax, recorded, treatment)
    _label_first_column(axes)
    _legend(figure, _layer_keys(recorded))
    return figure


@settings()
def learning_of(recorded: Recorded, treatment: str) -> Figure:
    """As `learning`, one treatment."""
    figure, (ax,) = _panels(1, height=2.6)
    _curves(ax, recorded, treatment)
    top = max((e.val_top1 for r in recorded.results for e in r.evaluations), default=1.0)
    ax.set_ylim(0, 105 * top if top > 0 else 100)
    return figure


def curves_of(recorded: Recorded) -> list[str]:
    """The treatments that have learning curves."""
    started = {result.treatment for result in recorded.results if result.evaluations}
    return [name for name in STYLES if name in started]


def curve_tasks(recorded: Recorded) -> list[str]:
    """The tasks that have learning curves; the first is drawn solid, the second dashed."""
    compared = targets_of(recorded.results)
    started = {result.target for result in recorded.results if result.evaluations}
    return sorted(started, key=lambda task: (task not in compared, task))


def key(treatment: str) -> Line2D:
    """The legend entry of a treatment."""
    style = STYLES[treatment]
    line = "--" if treatment == "base" else style.line  # the base is drawn across, dashed
    return Line2D([], [], color=style.colour, linestyle=line, label=style.label, **_marker(style, 5))


def layer_colour(n: int) -> str:
    """The colour of n copied layers; ink for none."""
    return INK if n == 0 else _LAYER_COLOURS[min(n, len(_LAYER_COLOURS)) - 1]


def _top1(ax: Axes, recorded: Recorded, target: str, score: Score) -> None:
    summary = summarise(recorded.results, score=score, target=target)
    found = [drop for drop in drops(recorded.results, score) if drop.target == target]
    ax.set_title(_task(recorded, target))
    ax.set_ylabel("validation top-1, %")
    bases = [
        value
        for result in recorded.results
        if result.treatment == "base" and result.target == target
        if (value := score_of(result, score)) is not None
    ]
    if summary.base is not None:
        ax.axhline(100 * summary.base.value, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        _dots(ax, [0.0] * len(bases), bases, STYLES["base"], big=True)
    level = chance(recorded.facts, target)
    if level is not None:
        ax.axhline(100 * level, color=FAINT, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        ax.annotate("chance", (0, 100 * level), (4, 3), color=FAINT, fontsize=8,
                    xycoords=ax.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
    for treatment in summary.treatments:
        style = STYLES[treatment]
        runs = [(drop.n, drop.top1[treatment]) for drop in found if treatment in drop.top1]
        means = [(row.n, row.top1[treatment].value) for row in summary.rows if treatment in row.top1]
        _line(ax, means, style, runs)
    _diverged(ax, recorded.results, target)
    _layers_axis(ax, summary, base=True)
    ax.set_ylim(bottom=0)
    _nothing(ax, bool(bases) or any(row.top1 for row in summary.rows))


def _differences(ax: Axes, recorded: Recorded, score: Score) -> None:
    summary = summarise(recorded.results, score=score)
    found = drops(recorded.results, score)
    ax.set_title("Difference from base" + (", mean of both" if len(summary.targets) > 1 else ""))
    ax.set_ylabel("points of top-1")
    ax.axhline(0, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    drawn = False
    for treatment in summary.treatments:
        if treatment == "random":  # far below all others: it would flatten what the panel is there to show
            continue
        style = STYLES[treatment]
        runs = [(drop.n, d) for drop in found if (d := drop.difference(treatment)) is not None]
        rows = [row for row in summary.rows if treatment in row.difference]
        _line(ax, [(row.n, row.difference[treatment].value) for row in rows], style, runs)
        for row in rows:
            _interval(ax, row.n + style.shift, row.difference[treatment], style.colour)
        drawn = drawn or bool(rows)
    _layers_axis(ax, summary, base=False)
    _nothing(ax, drawn)


_HATCHES = {"co-adaptation": "", "specificity": "///"}


def _parts(ax: Axes, recorded: Recorded, target: str | None, score: Score) -> None:
    summary = summarise(recorded.results, score=score, target=target)
    several = len(targets_of(recorded.results)) > 1
    ax.set_title(
        _task(recorded, target) if target else "Mean of both" if several else _task(recorded, summary.targets[0])
    )
    ax.set_ylabel("points of top-1 lost")
    rows = [row for row in summary.rows if row.lost and row.co_adaptation and row.specificity]
    above, below = dict.fromkeys((row.n for row in rows), 0.0), dict.fromkeys((row.n for row in rows), 0.0)
    for name, colour in PART_COLOURS.items():
        for row in rows:
            part = row.co_adaptation if name == "co-adaptation" else row.specificity
            height = 100 * (part.value if part else 0.0)
            side = above if height >= 0 else below  # a part below zero is a gain: it hangs below the axis
            ax.bar(
                row.n,
                height,
                width=0.62,
                bottom=side[row.n],
                color=colour,
                hatch=_HATCHES[name],
                edgecolor=PAPER,
                linewidth=0.6,
                zorder=2,
            )
            side[row.n] += height
    for row in rows:
        if row.lost is not None:
            ax.plot(
                [row.n],
                [100 * row.lost.value],
                color=INK,
                zorder=4,
                markeredgecolor=PAPER,
                marker="D",
                markersize=5,
            )
            _interval(ax, row.n, row.lost, INK)
    ax.axhline(0, color=INK, linewidth=0.8, zorder=3)
    _layers_axis(ax, summary, base=False)
    _nothing(ax, bool(rows))


def _curves(ax: Axes, recorded: Recorded, treatment: str) -> None:
    ax.set_title(STYLES[treatment].label)
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("steps")
    ax.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    results = [r for r in recorded.results if r.treatment == treatment and r.evaluations]
    first = next(iter(curve_tasks(recorded)), "A")
    for result in results:
        checks = _thin(result)
        ax.plot(
            [step for step, _ in checks],
            [100 * value for _, value in checks],
            color=layer_colour(result.n),
            linestyle="-" if result.target == first else "--",
            linewidth=1.1,
        )
        if result.state == "diverged":
            step, value = checks[-1]
            ax.plot([step], [100 * value], color=layer_colour(result.n), marker="x", markersize=6, zorder=4)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: _steps(value))
    _nothing(ax, bool(results))


def _panels(
    count: int, *, columns: int = 1, sharey: bool = False, height: float = _PANEL[1]
) -> tuple[Figure, list[Axes]]:
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_PANEL[0] * columns, height * rows + (0.35 if columns > 1 else 0)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _label_first_column(axes: Sequence[Axes]) -> None:
    """Panels that share their scale say once what it is."""
    for ax in axes:
        spec = ax.get_subplotspec()
        if spec is not None and not spec.is_first_col():
            ax.set_ylabel("")


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    width = figure.get_size_inches()[0]
    figure.legend(handles=list(handles), loc="outside lower center", ncols=max(2, int(width / 1.9)), fontsize=9)


def _layer_keys(recorded: Recorded) -> list[Line2D]:
    layers = sorted({result.n for result in recorded.results if result.n})
    keys = [Line2D([], [], color=layer_colour(n), label=f"n = {n}") for n in layers]
    if len(tasks := curve_tasks(recorded)) > 1:
        solid, dashed = tasks[:2]
        keys.append(Line2D([], [], color=INK, linestyle="-", label=f"task {solid}"))
        keys.append(Line2D([], [], color=INK, linestyle="--", label=f"task {dashed}"))
    return keys


def _line(ax: Axes, means: Sequence[tuple[int, float]], style: Style, runs: Sequence[tuple[int, float]]) -> None:
    """Mean line with markers, and every run behind it where there is more than one for some n."""
    xs, ys = [n + style.shift for n, _ in means], [100 * value for _, value in means]
    ax.plot(xs, ys, color=style.colour, linestyle=style.line, linewidth=1.6, zorder=3, **_marker(style, 5))
    if len(runs) > len(means):
        _dots(ax, [n + style.shift for n, _ in runs], [value for _, value in runs], style)


def _dots(ax: Axes, xs: Sequence[float], values: Sequence[float], style: Style, big: bool = False) -> None:
    ax.plot(
        xs,
        [100 * value for value in values],
        color=style.colour,
        linestyle="",
        alpha=1.0 if big else 0.5,
        zorder=2,
        **_marker(style, 5 if big else 3),
    )


def _marker(style: Style, size: float) -> dict[str, Any]:
    edge = PAPER if style.filled and size > 4 else style.colour
    face = style.colour if style.filled else PAPER
    return {
        "marker": style.marker,
        "markersize": size,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 0.6 if style.filled else 1.1,
    }


def _interval(ax: Axes, x: float, estimate: Estimate, colour: str) -> None:
    if estimate.half is not None:
        low, high = 100 * (estimate.value - estimate.half), 100 * (estimate.value + estimate.half)
        ax.plot([x, x], [low, high], color=colour, linewidth=1.1, zorder=2.5, solid_capstyle="butt")


def _diverged(ax: Axes, results: Sequence[Result], target: str) -> None:
    """Networks that failed are not part of any mean; a cross says where they ended."""
    for result in results:
        if result.target == target and result.state == "diverged" and result.last_top1 is not None:
            style = STYLES[result.treatment]
            if math.isfinite(result.last_top1):
                ax.plot(
                    [result.n],
                    [100 * result.last_top1],
                    color=style.colour,
                    marker="x",
                    markersize=7,
                    zorder=4,
                )


def _layers_axis(ax: Axes, summary: Summary, *, base: bool) -> None:
    layers = [row.n for row in summary.rows]
    ticks = [0, *layers] if base else layers
    ax.set_xticks(ticks, ["base" if n == 0 else str(n) for n in ticks])
    if ticks:
        ax.set_xlim(ticks[0] - 0.5, ticks[-1] + 0.5)
    ax.set_xlabel("layers copied, n")
    ax.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def _nothing(ax: Axes, drawn: bool) -> None:
    if not drawn:
        ax.text(0.5, 0.5, "nothing to compare yet", transform=ax.transAxes, ha="center", va="center", color=FAINT)


def _task(recorded: Recorded, target: str) -> str:
    classes = recorded.facts.get("classes", {}).get(target)
    return f"Task {target}" + (f", {len(classes)} classes" if classes else "")


def _thin(result: Result) -> list[tuple[int, float]]:
    checks = [(e.step, e.val_top1) for e in result.evaluations if math.isfinite(e.val_top1)]
    stride = math.ceil(len(checks) / _MOST_CHECKS)
    return checks if stride <= 1 else [*checks[:-1:stride], checks[-1]]


def _steps(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
