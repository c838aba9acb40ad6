"""The figures of a study, one function each: records in, a matplotlib Figure out, pyplot left alone.

In a notebook: `accuracy(fasttransfer.study.records.read_results(folder))`. Every panel is as wide as one column of a
paper that has two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from fasttransfer.report import drawing
from fasttransfer.report.analysis import (
    CO_ADAPTATION,
    FREEZING,
    FROM_BASE,
    SPECIFICITY,
    Effect,
    Estimate,
    Row,
    Score,
    Summary,
    chance,
    class_count,
    decompose,
    images_per_class,
    pair_scores,
    recovered,
    score_of,
    stuck,
    summarise,
    targets_of,
)
from fasttransfer.report.drawing import STUDY_LOOKS, STYLES, Style, key, layer_colour
from fasttransfer.report.filters import first_filters, montage
from fasttransfer.report.numbers import task_title
from fasttransfer.report.svg import FAINT, INK, PAPER, settings
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.records import Result, StudyResults

PART_COLOURS = {  # the first two are the same piece, at equal training and as the paper measures it
    FREEZING: STYLES["selffer"].colour,
    CO_ADAPTATION: STYLES["selffer"].colour,
    SPECIFICITY: STYLES["transfer"].colour,
}
_HATCHES = {FREEZING: "", CO_ADAPTATION: "", SPECIFICITY: "////"}
_CROSS: dict[str, Any] = {"marker": "x", "markersize": 5, "linestyle": "", "zorder": 4, "clip_on": False}
_MOST_CHECKS = 150  # drawn of a learning curve: more than there are pixels for only makes the file long


@settings()
def accuracy(
    recorded: StudyResults, score: Score = "last", *, target: str | None = None, pooled: bool = False, keys: bool = True
) -> Figure:
    """Top-1 against n: every run a point, the mean a line, the base across and, thinner, base+.

    Args:
        recorded: the study.
        score: "last" check or the mean of the "best10".
        target: draw this task alone; by default each in a panel.
        pooled: all tasks in one panel, as the paper's figure 2. What is read off such means is in part the
            difficulty of the halves that were run: `differences` is free of that.
        keys: with a legend.
    """
    targets = targets_of(recorded.results) if target is None else (target,)
    groups = [targets] if pooled else [(name,) for name in targets]
    figure, axes = drawing.panels(max(1, len(groups)), columns=2)
    for group, ax in zip(groups, axes, strict=False):
        _top1(ax, recorded, group, score)
    if not groups:
        drawing.nothing(axes[0], False)
    summary = summarise(recorded.results)
    if keys:
        drawing.legend(figure, [key(name) for name in STYLES if name in across(summary) or name in summary.treatments])
    return figure


@settings()
def differences(
    recorded: StudyResults,
    score: Score = "last",
    *,
    overlay: StudyResults | None = None,
    overlay_name: str = "the paper",
    keys: bool = True,
) -> Figure:
    """Points above or below the base of the same target and seed: runs, means and their 95 % intervals.

    Random layers are left out: far below all others, they would flatten what there is to see.

    Args:
        recorded: the study.
        score: "last" check or the mean of the "best10".
        overlay: another study whose means are laid behind, broad and pale; differences can be compared where
            accuracies on other images cannot.
        overlay_name: what the legend calls it.
        keys: with a legend.
    """
    figure, (ax,) = drawing.panels(1)
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    found = pair_scores(recorded.results, score)
    ax.set_title("Difference from the base")
    ax.set_ylabel("points of top-1")
    drawing.zero(ax)
    treatments = [name for name in summary.treatments if not name.startswith("random")]
    shown: list[Estimate] = []
    for name in treatments:
        style = STYLES[name]
        runs = [(drop.n, value) for drop in found if (value := drop[FROM_BASE[name]]) is not None]
        rows = [row for row in summary.rows if name in row.difference]
        drawing.line(ax, [(row.n, row.difference[name].value) for row in rows], style, runs)
        for row in rows:
            drawing.interval(ax, row.n + style.shift, row.difference[name], style.colour)
        shown += [row.difference[name] for row in rows]
    handles: list[Any] = [key(name) for name in treatments]
    layers = [row.n for row in summary.rows]
    if overlay is not None:
        for name, means in _behind(overlay, score, layers, treatments).items():
            drawing.shadow(ax, means, STYLES[name])
        handles.append(Line2D([], [], color=FAINT, linewidth=4.5, alpha=0.5, label=f"{overlay_name}, same colours"))
    drawing.fit(ax, shown)
    drawing.layers_axis(ax, layers)
    drawing.nothing(ax, bool(shown))
    if keys:
        drawing.legend(figure, handles)
    return figure


@settings()
def decomposition(
    recorded: StudyResults, score: Score = "last", *, target: str | None = None, keys: bool = True
) -> Figure:
    """What frozen transfer costs, as areas that hang from the fine-tuned selffer: first freezing, then specificity.

    All networks have had equal training. In a study that lacks fine-tuned selffers the areas hang from the base and the
    first one is the paper's co-adaptation; the title says so. The lower edge is the frozen transfer. A part below zero
    is a gain and stands above the reference; what remains of both is the diamond. Between two n that were measured the
    areas run straight; an n whose neighbours were not measured stands alone.

    Args:
        recorded: the study.
        score: "last" check or the mean of the "best10".
        target: of this task; by default the mean over tasks.
        keys: with a legend.
    """
    figure, (ax,) = drawing.panels(1)
    targets = targets_of(recorded.results)
    summary = summarise(recorded.results, score=score, target=target, facts=recorded.facts)
    alone = target or (targets[0] if len(targets) == 1 else None)
    found = decompose(recorded, summary)
    what = task_title(recorded, alone) if alone else "Mean over tasks"
    ax.set_title(f"{what}: {'equal training' if found.is_equal or not found.complete else 'the paper’s pieces'}")
    ax.set_ylabel(f"points of top-1 from {'selffer+' if found.is_equal else 'the base'}")
    rows = found.complete
    for stretch in _stretches(rows):
        _areas(ax, stretch, (found.first, SPECIFICITY))
    drawing.zero(ax)
    wholes = {row.n: row.effects[found.whole] for row in rows}
    nets = [(n, replace(whole, value=-whole.value)) for n, whole in wholes.items()]
    for n, net in nets:
        ax.plot([n], [100 * net.value], zorder=4, **drawing.marker(STYLES["base"], 4.5))
        drawing.interval(ax, n, net, INK)
    drawing.fit(ax, [net for _, net in nets])
    drawing.layers_axis(ax, [row.n for row in summary.rows])
    drawing.nothing(ax, bool(rows))
    if keys:
        handles: list[Any] = [
            Patch(facecolor=PART_COLOURS[part], hatch=_HATCHES[part], edgecolor=PAPER, linewidth=0, label=part.name)
            for part in (found.first, SPECIFICITY)
        ]
        handles.append(Line2D([], [], linestyle="", label="frozen transfer", **drawing.marker(STYLES["base"], 4.5)))
        drawing.legend(figure, handles)
    return figure


@settings()
def learning(recorded: StudyResults, treatment: str | None = None, *, keys: bool = True) -> Figure:
    """Validation top-1 against steps of every network, a panel for each treatment, or for `treatment` alone.

    The first task is drawn solid, the second dashed; a cross ends the curve of a network that diverged or
    whose training was ended because it was stuck.
    """
    treatments = [treatment] if treatment else curves_of(recorded) or ["base"]
    figure, axes = drawing.panels(len(treatments), columns=2, sharey=True, height=2.1)
    for name, ax in zip(treatments, axes, strict=True):
        _curves(ax, recorded, name)
        ax.label_outer()  # one scale for all: what is said once is enough
    top = max((e.val_top1 for r in recorded.results for e in r.evaluations), default=0.0)
    axes[0].set_ylim(0, 105 * top if top > 0 else 100)  # one scale, whatever is drawn of it
    if keys:
        drawing.legend(figure, _layer_keys(recorded))
    return figure


@settings()
def volume(studies: Sequence[StudyResults], score: Score = "last", *, keys: bool = True) -> Figure:
    """Top-1 of the bases against the training images per class, on a logarithmic axis.

    A network that ended no better than chance is a cross.

    Args:
        studies: of one kind, that differ in `--per-class`; each task is a line, every run a point.
        score: "last" check or the mean of the "best10".
        keys: with a legend, where there is more than one task.
    """
    figure, (ax,) = drawing.panels(1)
    points = volumes(studies, score)
    ax.set_title("Base networks on fewer images")
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("training images per class (at most)")
    looks = [
        Style(f"task {task}", colour, mark, "-", True, 0.0)
        for task, (colour, mark) in zip(points, STUDY_LOOKS, strict=False)
    ]
    for runs, style in zip(points.values(), looks, strict=False):
        kept = {k: [value for value, failed in found if not failed] for k, found in runs.items()}
        means = [(k, math.fsum(values) / len(values)) for k, values in kept.items() if values]
        drawing.line(ax, means, style, [(k, value) for k, values in kept.items() for value in values])
        failed = [(k, 100 * value) for k, found in runs.items() for value, stuck in found if stuck]
        ax.plot([k for k, _ in failed], [value for _, value in failed], color=style.colour, **_CROSS)
    ax.set_xscale("log")
    ticks = sorted({k for runs in points.values() for k in runs})
    ax.set_xticks(_apart(ticks), [_thousands(k) for k in _apart(ticks)])
    ax.xaxis.set_minor_locator(NullLocator())
    levels = [level for study in studies for task in points if (level := chance(study.facts, task)) is not None]
    if levels:
        _chance(ax, min(levels))
    ax.set_ylim(bottom=0)
    drawing.grid(ax)
    drawing.nothing(ax, bool(points))
    if keys and len(points) > 1:
        drawing.legend(figure, [_handle(style) for style in looks])
    return figure


@settings()
def comparison(
    studies: Mapping[str, StudyResults],
    score: Score = "last",
    *,
    treatments: Sequence[str] = ("transfer", "random"),
    keys: bool = True,
) -> Figure:
    """Studies side by side: points from the base against n, a line for each study and treatment, with intervals.

    With the frozen transfer of random and of natural/man-made halves and the random layers, it is the paper's figure 3.

    Args:
        studies: name -> study, in the order of the legend.
        score: "last" check or the mean of the "best10".
        treatments: which ones, told apart by their lines; studies are by colour and marker.
        keys: with a legend.
    """
    figure, (ax,) = drawing.panels(1)
    ax.set_title(f"{' and '.join(treatments).capitalize()} networks")
    ax.set_ylabel("points of top-1 from the base")
    drawing.zero(ax)
    layers: set[int] = set()
    handles: list[Line2D] = []
    shown: list[Estimate] = []
    for i, (name, recorded) in enumerate(studies.items()):
        colour, mark = STUDY_LOOKS[i % len(STUDY_LOOKS)]
        shift = 0.08 * (i - (len(studies) - 1) / 2)
        rows = summarise(recorded.results, score=score, facts=recorded.facts).rows
        for treatment in treatments:
            found = [(row.n, row.difference[treatment]) for row in rows if treatment in row.difference]
            if not found:
                continue
            layers.update(n for n, _ in found)
            label = f"{name}: {treatment}" if len(treatments) > 1 else name
            style = Style(label, colour, mark, STYLES[treatment].line, STYLES[treatment].filled, shift)
            drawing.line(ax, [(n, value.value) for n, value in found], style, [])
            for n, value in found:
                drawing.interval(ax, n + shift, value, colour)
            shown += [value for _, value in found]
            handles.append(_handle(style))
    drawing.fit(ax, shown)
    drawing.layers_axis(ax, sorted(layers))
    drawing.nothing(ax, bool(handles))
    if keys and handles:
        drawing.legend(figure, handles)
    return figure


@settings()
def filters(recorded: StudyResults, *, seed: int | None = None, target: str | None = None) -> Figure:
    """The first layer's filters of every trained base, read from the study's `weights/`.

    Each filter is scaled by its own largest weight: grey is zero, the colours are the signs of red, green and blue.

    Args:
        recorded: the study.
        seed: of these bases; by default the study's first.
        target: the base of this task alone.
    """
    found = {task: w for task, w in first_filters(recorded, seed).items() if target in (None, task)}
    sheets = {task: montage(weights) for task, weights in found.items()}
    height = max((drawing.PANEL[0] * sheet.shape[0] / sheet.shape[1] for sheet in sheets.values()), default=1.0)
    figure, axes = drawing.panels(max(1, len(found)), columns=2, height=height + 0.25)  # inches, for the title
    for (task, sheet), ax in zip(sheets.items(), axes, strict=False):
        count, _, side, _ = found[task].shape
        ax.set_title(f"base{task}: conv1, {count} filters of {side} x {side}")
        ax.imshow(sheet, interpolation="none")
    for ax in axes:
        ax.set_axis_off()
        drawing.nothing(ax, bool(found), "no weights here")
    return figure


def curves_of(recorded: StudyResults) -> list[str]:
    """The treatments that have learning curves."""
    started = {result.treatment for result in recorded.results if len(result.evaluations) > 1}
    return [name for name in STYLES if name in started]


def curve_tasks(recorded: StudyResults) -> list[str]:
    """The tasks that have learning curves; the first is drawn solid, the second dashed."""
    compared = targets_of(recorded.results)
    started = {result.target for result in recorded.results if result.evaluations}
    return sorted(started, key=lambda task: (task not in compared, task))


def volumes(studies: Sequence[StudyResults], score: Score = "last") -> dict[str, dict[int, list[tuple[float, bool]]]]:
    """Task -> training images per class -> (top-1, whether it is no better than chance) of its finished bases."""
    found: dict[str, dict[int, list[tuple[float, bool]]]] = {}
    for recorded in studies:
        for result in recorded.results:
            value, images = score_of(result, score), images_per_class(recorded, result.target)
            if result.treatment == "base" and value is not None and images is not None:
                # Where every limit is a target of its own, as in the published results, they are one line.
                task = "all" if recorded.facts.get("per_class") else result.target
                failed = bool(result.reason) or _at_chance(recorded, result)
                found.setdefault(task, {}).setdefault(round(images), []).append((value, failed))
    return {task: dict(sorted(runs.items())) for task, runs in sorted(found.items())}


def _at_chance(recorded: StudyResults, result: Result) -> bool:
    classes = class_count(recorded.facts, result.target)
    return classes is not None and stuck(result, classes) and not recovered(result, classes)


def _apart(ticks: Sequence[int]) -> list[int]:
    """Ticks of a logarithmic axis whose labels do not touch: each at least 1.6 times the one before."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick >= 1.6 * kept[-1]:
            kept.append(tick)
    return kept


def _top1(ax: Axes, recorded: StudyResults, targets: Sequence[str], score: Score) -> None:
    """One panel of `accuracy`: the runs of all `targets` together."""
    results = [result for result in recorded.results if result.target in targets]
    summary = summarise(results, score=score, facts=recorded.facts)
    found = pair_scores(results, score)
    ax.set_title(task_title(recorded, targets[0]) if len(targets) == 1 else "Every network, all tasks together")
    ax.set_ylabel("validation top-1, %")
    bases = [
        value for result in results if result.treatment == "base" if (value := score_of(result, score)) is not None
    ]
    values = list(bases)
    if summary.base is not None:
        ax.axhline(100 * summary.base.value, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        drawing.dots(ax, [0.0] * len(bases), bases, STYLES["base"], big=len(bases) < 3)
    if summary.base_plus is not None:
        ax.axhline(100 * summary.base_plus.value, color=STYLES["base+"].colour, zorder=1, **drawing.ACROSS_PLUS)
        values.append(summary.base_plus.value)
    for treatment in summary.treatments:
        runs = [(drop.n, drop.top1[treatment]) for drop in found if treatment in drop.top1]
        means = [(row.n, row.top1[treatment].value) for row in summary.rows if treatment in row.top1]
        drawing.line(ax, means, STYLES[treatment], runs)
        values += [value for _, value in runs]
    drawing.crosses(ax, results, targets)
    drawing.layers_axis(ax, [row.n for row in summary.rows], base=True)
    drawing.nothing(ax, bool(values))
    failed = any(result.state == "diverged" for result in results)
    if failed or not values or min(values) < 0.6 * max(values):  # else all would be crowded at the top
        level = chance(recorded.facts, targets[0])
        if level is not None:
            _chance(ax, level)
        ax.set_ylim(bottom=0)


def _chance(ax: Axes, level: float) -> None:
    ax.axhline(100 * level, color=FAINT, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    ax.annotate("chance", (0, 100 * level), (4, 2), color=FAINT, fontsize=7,
                xycoords=ax.get_yaxis_transform(), textcoords="offset points")  # fmt: skip


def _behind(
    overlay: StudyResults, score: Score, layers: Sequence[int], treatments: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """Treatment -> (n, mean difference) of the study laid behind, as far as the one in front goes."""
    rows = [row for row in summarise(overlay.results, score=score, facts=overlay.facts).rows if row.n in layers]
    found = {
        name: [(row.n, row.difference[name].value) for row in rows if name in row.difference] for name in treatments
    }
    return {name: means for name, means in found.items() if means}


def _stretches(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose n follow each other."""
    found: list[list[Row]] = []
    for row in rows:
        if found and row.n == found[-1][-1].n + 1:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _areas(ax: Axes, rows: Sequence[Row], parts: Sequence[Effect]) -> None:
    """Costs stacked below the reference, gains above it; half a column wide on both sides of the outer n."""
    layers = np.array([row.n for row in rows], dtype=float)
    # Fine enough that where a part turns from loss to gain, its neighbour's edge turns at the same place.
    xs = np.union1d(np.linspace(layers[0] - 0.3, layers[-1] + 0.3, 60 * len(rows) + 1).round(4), layers)
    above, below = np.zeros_like(xs), np.zeros_like(xs)
    for part in parts:
        change = np.interp(xs, layers, [-100 * row.effects[part].value for row in rows])
        for side, share in ((above, change.clip(min=0)), (below, change.clip(max=0))):
            if share.any():
                ax.fill_between(
                    xs,
                    side,
                    side + share,
                    where=share != 0,
                    facecolor=PART_COLOURS[part],
                    hatch=_HATCHES[part],
                    edgecolor=PAPER,
                    linewidth=0,
                    zorder=2,
                )
            side += share


def _curves(ax: Axes, recorded: StudyResults, treatment: str) -> None:
    ax.set_title(STYLES[treatment].label)
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("steps")
    drawing.grid(ax)
    results = [r for r in recorded.results if r.treatment == treatment and r.evaluations]
    first = next(iter(curve_tasks(recorded)), "A")
    for result in results:
        checks = _thin(result)
        ax.plot(
            [step for step, _ in checks],
            [100 * value for _, value in checks],
            color=_curve_colour(result),
            linestyle="-" if result.target == first else "--",
            linewidth=0.9,
        )
        if result.state in ("diverged", "stuck"):
            step, value = checks[-1]
            ax.plot([step], [100 * value], color=_curve_colour(result), marker="x", markersize=6, zorder=4)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    drawing.nothing(ax, bool(results))


def _curve_colour(result: Result) -> str:
    """Of its number of copied layers; base+, which copies all, is drawn as its base."""
    return layer_colour(0 if result.treatment == BASE_PLUS else result.n)


def across(summary: Summary) -> set[str]:
    """The networks that `accuracy` draws as a line across."""
    return {BASE} if summary.base_plus is None else {BASE, BASE_PLUS}


def layers_of(recorded: StudyResults) -> list[int]:
    """The n of the study's networks with copied layers; base+ has none."""
    return sorted({r.n for r in recorded.results if r.treatment not in (BASE, BASE_PLUS)})


def _layer_keys(recorded: StudyResults) -> list[Line2D]:
    layers = layers_of(recorded)
    keys = [Line2D([], [], color=layer_colour(n), label=f"n = {n}") for n in layers]
    if len(tasks := curve_tasks(recorded)) > 1:
        solid, dashed = tasks[:2]
        keys.append(Line2D([], [], color=INK, linestyle="-", label=f"task {solid}"))
        keys.append(Line2D([], [], color=INK, linestyle="--", label=f"task {dashed}"))
    return keys


def _handle(style: Style) -> Line2D:
    return Line2D([], [], color=style.colour, linestyle=style.line, label=style.label, **drawing.marker(style, 4.5))


def _thin(result: Result) -> list[tuple[int, float]]:
    checks = [(e.step, e.val_top1) for e in result.evaluations if math.isfinite(e.val_top1)]
    stride = math.ceil(len(checks) / _MOST_CHECKS)
    return checks if stride <= 1 else [*checks[:-1:stride], checks[-1]]


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
