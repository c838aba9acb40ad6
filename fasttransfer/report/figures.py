"""The figures of a study, one function each: records in, a matplotlib Figure out, pyplot left alone.

In a notebook: `accuracy(fasttransfer.study.records.read_results(folder))`. Every panel is as wide as one column of a
paper that has two. All functions take these arguments:

* `recorded`: the study;
* `score`: "last" check, or the mean of the "best10";
* `target`: draw this task alone;
* `keys`: with a legend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fasttransfer.core.intervals import Estimate
from fasttransfer.report import drawing
from fasttransfer.report.analysis.comparison import runs_by_volume
from fasttransfer.report.analysis.effects import FROM_BASE, SPECIFICITY, Effect, level
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.summary import Row, Summary, decompose, summarise, targets_of
from fasttransfer.report.drawing import PART_STYLES, STYLES, Style, layer_colour
from fasttransfer.report.filters import first_filters, montage
from fasttransfer.report.numbers import task_title
from fasttransfer.report.svg import INK, settings
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.chance import mean_chance
from fasttransfer.study.records import Result, Score, StudyResults

_CROSS: dict[str, Any] = {"marker": "x", "markersize": 5, "linestyle": "", "zorder": 4, "clip_on": False}
_MOST_CHECKS = 150  # drawn of a learning curve: more than there are pixels for only makes the file long


@settings()
def accuracy(
    recorded: StudyResults, score: Score = "last", *, target: str | None = None, pooled: bool = False, keys: bool = True
) -> Figure:
    """Draw top-1 against n: every run a point, the mean a line, the base across and, thinner, base+.

    Each task has a panel; with `pooled` all share one, as in the paper's figure 2. What is read off such means is in
    part the difficulty of the halves that were run: `differences` is free of that.
    """
    targets = targets_of(recorded.results) if target is None else (target,)
    groups = [targets] if pooled else [(name,) for name in targets]
    figure, axes = drawing.panels(max(1, len(groups)), columns=2)
    for group, ax in zip(groups, axes, strict=False):
        _top1(ax, recorded, group, score)
    if not groups:
        drawing.nothing(axes[0], False)
    if keys:
        summary = summarise(recorded.results)
        drawing.legend(figure, drawing.treatment_styles(across(summary).union(summary.treatments)))
    return figure


@settings()
def differences(
    recorded: StudyResults,
    score: Score = "last",
    *,
    overlay: StudyResults | None = None,
    keys: bool = True,
) -> Figure:
    """Draw points above or below the base of the same target and seed: runs, means and their 95 % intervals.

    Random layers are left out: far below all others, they would flatten what there is to see. The means of `overlay`, a
    part of the paper, are laid behind, broad and pale: its differences compare with the study's, its accuracies do not.
    """
    figure, (ax,) = drawing.panels(1)
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    noise = Noise(recorded.results, recorded.facts, score)
    ax.set_title("Difference from the base")
    ax.set_ylabel("points of top-1")
    drawing.across(ax, 0)
    treatments = [name for name in summary.treatments if not name.startswith("random")]
    means: list[Estimate] = []
    for name in treatments:
        runs = [(n, value) for (_, _, n), value in noise.values(FROM_BASE[name].contrast).items()]
        means += _means(ax, summary.rows, name, STYLES[name], runs)
    styles = [STYLES[name] for name in treatments]
    layers = [row.n for row in summary.rows]
    if overlay is not None:
        rows = [row for row in summarise(overlay.results, score=score).rows if row.n in layers]
        for name in treatments:
            if behind := [(row.n, row.difference[name].value) for row in rows if name in row.difference]:
                drawing.shadow(ax, behind, STYLES[name])
        styles.append(replace(drawing.BEHIND, label="the paper, same colours"))
    drawing.fit(ax, means)
    drawing.layers_axis(ax, layers)
    drawing.nothing(ax, bool(means))
    if keys:
        drawing.legend(figure, styles)
    return figure


@settings()
def decomposition(
    recorded: StudyResults, score: Score = "last", *, target: str | None = None, keys: bool = True
) -> Figure:
    """Draw the cost of frozen transfer as areas below the fine-tuned selffer: first freezing, then specificity.

    All networks have had equal training. In a study that lacks fine-tuned selffers the areas hang from the base and the
    first one is the paper's co-adaptation; the title says so. The lower edge is the frozen transfer. A part below zero
    is a gain and stands above the reference; what remains of both is the diamond. Between two n that were measured the
    areas run straight; an n whose neighbours were not measured stands alone. The default is the mean over tasks.
    """
    figure, (ax,) = drawing.panels(1)
    targets = targets_of(recorded.results)
    summary = summarise(recorded.results, score=score, target=target, facts=recorded.facts)
    alone = target or (targets[0] if len(targets) == 1 else None)
    parts = decompose(recorded, summary)
    what = task_title(recorded, alone) if alone else "Mean over tasks"
    ax.set_title(f"{what}: {'equal training' if parts.is_equal or not parts.complete else 'the paper’s pieces'}")
    ax.set_ylabel(f"points of top-1 from {'selffer+' if parts.is_equal else 'the base'}")
    for stretch in _stretches(parts.complete):
        _areas(ax, stretch, (parts.first, SPECIFICITY))
    drawing.across(ax, 0)
    wholes = {row.n: row.effects[parts.whole] for row in parts.complete}
    nets = {n: replace(whole, value=-whole.value) for n, whole in wholes.items()}
    for n, net in nets.items():
        ax.plot([n], [100 * net.value], zorder=4, **drawing.marker(drawing.FROZEN_TRANSFER, 4.5))
        drawing.interval(ax, n, net, INK)
    drawing.fit(ax, nets.values())
    drawing.layers_axis(ax, [row.n for row in summary.rows])
    drawing.nothing(ax, bool(nets))
    if keys:
        drawing.legend(figure, drawing.part_styles(parts.first))
    return figure


@settings()
def learning(recorded: StudyResults, treatment: str | None = None, *, keys: bool = True) -> Figure:
    """Draw validation top-1 against steps of every network, a panel for each treatment, or for `treatment` alone.

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
        drawing.legend(figure, curve_styles(recorded))
    return figure


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
    drawing.logarithmic_axis(ax, {k: _thousands(k) for runs in points.values() for k in runs})
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
    """
    figure, (ax,) = drawing.panels(1)
    ax.set_title(f"{' and '.join(treatments).capitalize()} networks")
    ax.set_ylabel("points of top-1 from the base")
    drawing.across(ax, 0)
    layers: set[int] = set()
    styles: list[Style] = []
    means: list[Estimate] = []
    for i, (name, look) in enumerate(drawing.study_styles(studies).items()):
        rows = summarise(studies[name].results, score=score, facts=studies[name].facts).rows
        for treatment in treatments:
            style = replace(
                look,
                label=f"{name}: {treatment}" if len(treatments) > 1 else name,
                line=STYLES[treatment].line,
                filled=STYLES[treatment].filled,
                shift=0.08 * (i - (len(studies) - 1) / 2),
            )
            if drawn := _means(ax, rows, treatment, style):
                means += drawn
                styles.append(style)
                layers.update(row.n for row in rows if treatment in row.difference)
    drawing.fit(ax, means)
    drawing.layers_axis(ax, sorted(layers))
    drawing.nothing(ax, bool(styles))
    if keys and styles:
        drawing.legend(figure, styles)
    return figure


@settings()
def filters(recorded: StudyResults, *, target: str | None = None) -> Figure:
    """Draw the first layer's filters of every trained base of the first seed, from `weights/`.

    Each filter is scaled by its own largest weight: grey is zero, the colours are the signs of red, green and blue.
    """
    weights = {task: conv1 for task, conv1 in first_filters(recorded).items() if target in (None, task)}
    sheets = {task: montage(conv1) for task, conv1 in weights.items()}
    height = max((drawing.PANEL[0] * sheet.shape[0] / sheet.shape[1] for sheet in sheets.values()), default=1.0)
    figure, axes = drawing.panels(max(1, len(sheets)), columns=2, height=height + 0.25)  # inches, for the title
    for (task, sheet), ax in zip(sheets.items(), axes, strict=False):
        count, _, side, _ = weights[task].shape
        ax.set_title(f"base{task}: conv1, {count} filters of {side} x {side}")
        ax.imshow(sheet, interpolation="none")
    for ax in axes:
        ax.set_axis_off()
        drawing.nothing(ax, bool(sheets), "no weights here")
    return figure


def across(summary: Summary) -> set[str]:
    """Return the networks that `accuracy` draws as a line across."""
    return {BASE} if summary.base_plus is None else {BASE, BASE_PLUS}


def curves_of(recorded: StudyResults) -> list[str]:
    """Return the treatments that have learning curves."""
    started = {result.treatment for result in recorded.results if len(result.evaluations) > 1}
    return [name for name in STYLES if name in started]


def curve_styles(recorded: StudyResults) -> list[Style]:
    """Return the legend of the learning curves: the number of copied layers by colour, tasks by line."""
    layers = sorted({r.n for r in recorded.results if r.treatment not in (BASE, BASE_PLUS)})
    styles = [Style(f"n = {n}", layer_colour(n)) for n in layers]
    if len(tasks := _curve_tasks(recorded)) > 1:
        styles += [Style(f"task {tasks[0]}", INK), Style(f"task {tasks[1]}", INK, line="--")]
    return styles


def _curve_tasks(recorded: StudyResults) -> list[str]:
    """Return the tasks that have learning curves, those that are compared first."""
    compared = targets_of(recorded.results)
    started = {result.target for result in recorded.results if result.evaluations}
    return sorted(started, key=lambda task: (task not in compared, task))


def _means(
    ax: Axes, rows: Sequence[Row], treatment: str, style: Style, runs: Sequence[tuple[int, float]] = ()
) -> list[Estimate]:
    """Draw the differences of `treatment` from the base with their intervals, and its runs; return the means."""
    means = {row.n: row.difference[treatment] for row in rows if treatment in row.difference}
    if means:
        drawing.line(ax, [(n, mean.value) for n, mean in means.items()], style, runs)
    for n, mean in means.items():
        drawing.interval(ax, n + style.shift, mean, style.colour)
    return list(means.values())


def _top1(ax: Axes, recorded: StudyResults, targets: Sequence[str], score: Score) -> None:
    """Draw one panel of `accuracy`: the runs of all `targets` together."""
    results = [result for result in recorded.results if result.target in targets]
    summary = summarise(results, score=score, facts=recorded.facts)
    noise = Noise(results, recorded.facts, score)
    ax.set_title(task_title(recorded, targets[0]) if len(targets) == 1 else "Every network, all tasks together")
    ax.set_ylabel("validation top-1, %")
    bases = [value for r in results if r.treatment == BASE and (value := r.score(score)) is not None]
    values = list(bases)
    if summary.base is not None:
        drawing.across(ax, summary.base.value)
        drawing.dots(ax, [(0.0, value) for value in bases], STYLES["base"], big=len(bases) < 3)
    if summary.base_plus is not None:
        drawing.across(ax, summary.base_plus.value, STYLES["base+"].colour, **drawing.ACROSS_PLUS)
        values.append(summary.base_plus.value)
    for treatment in summary.treatments:
        tops = noise.values(lambda n, treatment=treatment: level((treatment, n)))  # type: ignore[misc]
        runs = [(n, value) for (_, _, n), value in tops.items()]
        means = [(row.n, row.top1[treatment].value) for row in summary.rows if treatment in row.top1]
        drawing.line(ax, means, STYLES[treatment], runs)
        values += [value for _, value in runs]
    drawing.crosses(ax, results, targets)
    drawing.layers_axis(ax, [row.n for row in summary.rows], base=True)
    drawing.nothing(ax, bool(values))
    failed = any(result.state == "diverged" for result in results)
    if failed or not values or min(values) < 0.6 * max(values):  # else all would be crowded at the top
        guess = mean_chance(recorded.facts, targets[:1])
        if guess is not None:
            drawing.chance(ax, guess)
        ax.set_ylim(bottom=0)


def _stretches(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows in groups whose n follow each other."""
    stretches: list[list[Row]] = []
    for row in rows:
        if not stretches or row.n != stretches[-1][-1].n + 1:
            stretches.append([])
        stretches[-1].append(row)
    return stretches


def _areas(ax: Axes, rows: Sequence[Row], parts: Sequence[Effect]) -> None:
    """Stack costs below the reference, gains above it; they reach 0.3 beyond the outer n."""
    layers = np.array([row.n for row in rows], dtype=float)
    # Fine enough that where a part turns from loss to gain, its neighbour's edge turns at the same place.
    xs = np.union1d(np.linspace(layers[0] - 0.3, layers[-1] + 0.3, 60 * len(rows) + 1).round(4), layers)
    above, below = np.zeros_like(xs), np.zeros_like(xs)
    for part in parts:
        change = np.interp(xs, layers, [-100 * row.effects[part].value for row in rows])
        for side, share in ((above, change.clip(min=0)), (below, change.clip(max=0))):
            if share.any():
                ax.fill_between(xs, side, side + share, where=share != 0, zorder=2, **drawing.area(PART_STYLES[part]))
            side += share


def _curves(ax: Axes, recorded: StudyResults, treatment: str) -> None:
    ax.set_title(STYLES[treatment].label)
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("steps")
    drawing.grid(ax)
    results = [r for r in recorded.results if r.treatment == treatment and r.evaluations]
    first = next(iter(_curve_tasks(recorded)), "A")
    for result in results:
        checks = _thin(result)
        colour = layer_colour(0 if treatment == BASE_PLUS else result.n)  # base+, which copies all, as its base
        line = "-" if result.target == first else "--"
        ax.plot([step for step, _ in checks], [100 * v for _, v in checks], color=colour, linestyle=line, linewidth=0.9)
        if result.state in ("diverged", "stuck"):
            step, value = checks[-1]
            ax.plot([step], [100 * value], color=colour, marker="x", markersize=6, zorder=4)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    drawing.nothing(ax, bool(results))


def _thin(result: Result) -> list[tuple[int, float]]:
    checks = [(e.step, e.val_top1) for e in result.evaluations if math.isfinite(e.val_top1)]
    stride = math.ceil(len(checks) / _MOST_CHECKS)
    return checks if stride <= 1 else [*checks[:-1:stride], checks[-1]]


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
