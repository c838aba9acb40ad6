"""The figures against n: top-1, its differences from the base, and what these are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fasttransfer.core.intervals import Estimate
from fasttransfer.report import drawing
from fasttransfer.report.analysis.effects import FROM_BASE, SPECIFICITY, WORTHS, Effect, level
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.report.analysis.summary import Row, Summary, decompose, summarise, targets_of
from fasttransfer.report.cut_axis import CutAxis, cut_axis
from fasttransfer.report.drawing import PART_STYLES, STYLES, Style
from fasttransfer.report.numbers import networks, task_title
from fasttransfer.report.stages import Stages
from fasttransfer.report.svg import INK, settings
from fasttransfer.study.cells import BASE, BASE_PLUS
from fasttransfer.study.chance import mean_chance
from fasttransfer.study.records import Score, StudyResults

_NOT_FROM_BASE = ("random", "pretrained")  # how the treatments begin that `differences` leaves out


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
    cuts = [r.n for r in recorded.results if r.target in targets and r.treatment not in (BASE, BASE_PLUS)]
    axis = cut_axis(cuts, Stages.of(recorded.facts), has_base=True)
    figure, axes = drawing.panels(max(1, len(groups)), columns=2, size=axis.size)
    for group, ax in zip(groups, axes, strict=False):
        _top1(ax, recorded, group, score, axis)
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

    Random layers are left out: far below all others, they would flatten what there is to see; so are pretrained ones,
    which have had a training that no base has, see `worth`. The means of `overlay`, a part of the paper, are laid
    behind, broad and pale, where the study's network has the paper's stages: its differences compare with the study's,
    its accuracies do not.
    """
    stages = Stages.of(recorded.facts)
    if not stages.are_papers:
        overlay = None
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    axis = cut_axis([row.n for row in summary.rows], stages)
    figure, (ax,) = drawing.panels(1, size=axis.size)
    noise = Noise(recorded.results, recorded.facts, score)
    ax.set_title("Difference from the base")
    ax.set_ylabel("points of top-1")
    drawing.across(ax, 0)
    treatments = [name for name in summary.treatments if not name.startswith(_NOT_FROM_BASE)]
    means: list[Estimate] = []
    for name in treatments:
        runs = [(n, value) for (_, _, n), value in noise.values(FROM_BASE[name].contrast).items()]
        means += drawing.estimates(ax, _of(summary.rows, FROM_BASE[name]), STYLES[name], runs)
    styles = [STYLES[name] for name in treatments]
    if overlay is not None:
        rows = [row for row in summarise(overlay.results, score=score).rows if row.n in axis.cuts]
        for name in treatments:
            if behind := [(row.n, row.difference[name].value) for row in rows if name in row.difference]:
                drawing.shadow(ax, behind, STYLES[name])
        styles.append(replace(drawing.BEHIND, label="the paper, same colours"))
    drawing.fit(ax, means)
    axis.draw(ax)
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
    targets = targets_of(recorded.results)
    summary = summarise(recorded.results, score=score, target=target, facts=recorded.facts)
    axis = cut_axis([row.n for row in summary.rows], Stages.of(recorded.facts))
    figure, (ax,) = drawing.panels(1, size=axis.size)
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
    axis.draw(ax)
    drawing.nothing(ax, bool(nets))
    if keys:
        drawing.legend(figure, drawing.part_styles(parts.first))
    return figure


@settings()
def worth(recorded: StudyResults, score: Score = "last", *, keys: bool = True) -> Figure:
    """Draw what the first stages of the pretrained weights are worth beside those of the task's own base.

    Both networks of a difference have had the same training, frozen or fine-tuned; the training that the pretrained
    weights come from is not counted.
    """
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    found = {effect: _of(summary.rows, effect) for effect in WORTHS}
    axis = cut_axis([n for means in found.values() for n in means], Stages.of(recorded.facts))
    figure, (ax,) = drawing.panels(1, size=axis.size)
    noise = Noise(recorded.results, recorded.facts, score)
    ax.set_title("What the pretrained weights are worth")
    ax.set_ylabel("points of top-1")
    drawing.across(ax, 0)
    for effect, means in found.items():
        drawing.estimates(
            ax, means, STYLES[effect.left], [(n, value) for (_, _, n), value in noise.values(effect.contrast).items()]
        )
    drawing.fit(ax, [mean for means in found.values() for mean in means.values()])
    axis.draw(ax)
    drawing.nothing(ax, any(found.values()))
    if keys:
        drawing.legend(figure, worth_styles())
    return figure


def worth_styles() -> list[Style]:
    """Return the legend of `worth`."""
    return [replace(STYLES[effect.left], label=networks(effect)) for effect in WORTHS]


def across(summary: Summary) -> set[str]:
    """Return the networks that `accuracy` draws as a line across."""
    return {BASE} if summary.base_plus is None else {BASE, BASE_PLUS}


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


def _of(rows: Sequence[Row], effect: Effect) -> dict[int, Estimate]:
    """Return n -> the effect, where there is one."""
    return {row.n: found for row in rows if (found := row[effect]) is not None}


def _top1(ax: Axes, recorded: StudyResults, targets: Sequence[str], score: Score, axis: CutAxis) -> None:
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
    axis.draw(ax)
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
