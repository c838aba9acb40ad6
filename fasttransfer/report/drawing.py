"""The look of treatments in every figure and legend, and the strokes that figures are made of."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.effects import CO_ADAPTATION, FREEZING, SPECIFICITY, TREATMENTS, Effect
from fasttransfer.report.svg import FAINT, INK, PAPER
from fasttransfer.study.records import Result

PANEL = (3.3, 2.6)  # inches: a column of a paper of two; what is written in 8 points is read in 8 points


@dataclass(frozen=True)
class Style:
    """The looks of a curve and of its entry in legends; treatments never differ by colour alone.

    Attributes:
        label: in legends.
        colour: of Okabe and Ito's palette, told apart by colour-blind readers.
        marker, line: as matplotlib names them; "" for none.
        filled: whether markers are filled, as those of frozen layers are.
        shift: of its points along n, so that treatments do not hide each other.
        swatch: the CSS classes of an entry that is a patch or a broad or dash-dotted line.
    """

    label: str
    colour: str
    marker: str = ""
    line: str = "-"
    filled: bool = True
    shift: float = 0.0
    swatch: str = ""


STYLES = {
    "base": Style("base", INK, "D", "--"),  # drawn across
    "base+": Style("base+, one more schedule", INK, "", "-.", False, swatch="dashdot"),  # a thin line across
    "selffer": Style("selffer, frozen", "#0072b2", "o", "-", True, -0.12),
    "selffer+": Style("selffer+, fine-tuned", "#56b4e9", "o", "--", False, -0.06),
    "transfer": Style("transfer, frozen", "#d55e00", "s", "-", True, 0.12),
    "transfer+": Style("transfer+, fine-tuned", "#e69f00", "s", "--", False, 0.06),
    "random": Style("random, frozen", "#009e73", "^", ":", True),
    "random-he": Style("random of He's values", "#cc79a7", "v", ":", True),
    "pretrained": Style("pretrained, frozen", "#6f3d99", "*", "-", True, 0.18),
    "pretrained+": Style("pretrained+, fine-tuned", "#a985cf", "*", "--", False, -0.18),
}
# A treatment has this style until one is chosen for it.
STYLES |= {name: Style(name, FAINT, "X", "-.") for name in TREATMENTS if name not in STYLES}
PART_STYLES = {  # the first two are one part of the cost, at equal training and as the paper measures it
    FREEZING: Style(FREEZING.name, STYLES["selffer"].colour, swatch="swatch"),
    CO_ADAPTATION: Style(CO_ADAPTATION.name, STYLES["selffer"].colour, swatch="swatch"),
    SPECIFICITY: Style(SPECIFICITY.name, STYLES["transfer"].colour, swatch="swatch hatched"),
}
FROZEN_TRANSFER = Style("frozen transfer", INK, "D", "")  # of the parts together
BEHIND = Style("the paper's, in the same colours", FAINT, swatch="behind")
ACROSS: dict[str, Any] = {"linestyle": (0, (5, 3)), "linewidth": 0.9}  # a reference
ACROSS_PLUS: dict[str, Any] = {"linestyle": (0, (6, 2, 1, 2)), "linewidth": 0.6}  # dash-dot
# Studies side by side: of the same palette, each with a marker of its own.
_STUDY_LOOKS = (
    ("#d55e00", "s"), ("#0072b2", "o"), ("#009e73", "^"), ("#cc79a7", "v"), ("#e69f00", "D"), ("#56b4e9", "P"),
)  # fmt: skip
# From warm (the first cut) to cold (the last), of middle lightness so that they show on a light and on a dark page.
_CUT_COLOURS = ("#dd9a1f", "#e2743c", "#d65468", "#b8478f", "#8f4fb0", "#6a62c9", "#3f83d6")
_MANY = 50  # means of a line, whose markers would touch
_TICK_RATIO = 1.6  # between ticks of a logarithmic axis, so that their labels do not touch


def treatment_styles(treatments: Container[str]) -> list[Style]:
    """Return the styles of `treatments`, in the order of all legends."""
    return [style for name, style in STYLES.items() if name in treatments]


def part_styles(first: Effect, whole: str = FROZEN_TRANSFER.label) -> list[Style]:
    """Return the styles of a decomposition: its first part (FREEZING or CO_ADAPTATION), specificity, and `whole`."""
    return [PART_STYLES[first], PART_STYLES[SPECIFICITY], replace(FROZEN_TRANSFER, label=whole)]


def study_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return the styles of studies or tasks side by side, by name."""
    return {name: Style(name, *look) for name, look in zip(names, cycle(_STUDY_LOOKS), strict=False)}


def cut_colour(n: int, cuts: int = 0) -> str:
    """Return the colour of cut `n` of a network that has `cuts`; ink for cut 0.

    More than seven cuts spread over the same scale, so that no two are equal.
    """
    if n == 0:
        return INK
    anchors = len(_CUT_COLOURS)
    place = (n - 1) * (anchors - 1) / (max(cuts, n, anchors) - 1)
    red, green, blue = (
        float(np.interp(place, range(anchors), channel)) for channel in zip(*map(to_rgb, _CUT_COLOURS), strict=True)
    )
    return to_hex((red, green, blue))


def some_cuts(cuts: Sequence[int], most: int = 7) -> list[int]:
    """Return at most so many of `cuts` for a legend of their colours: the first, the last, and some evenly between."""
    if len(cuts) <= most:
        return list(cuts)
    return [cuts[round(i * (len(cuts) - 1) / (most - 1))] for i in range(most)]


def panels(
    count: int, *, columns: int = 1, sharey: bool = False, size: tuple[float, float] = PANEL
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its `count` panels of `size`, in inches; those wider than a column below each other."""
    width, height = size
    columns = 1 if width > PANEL[0] else min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def legend(figure: Figure, styles: Sequence[Style]) -> None:
    """Put a legend below the panels and make room for it."""
    width, height = figure.get_size_inches()
    longest = max((len(style.label) for style in styles), default=0)
    # In points: letters of this size, and the line before them.
    columns = max(1, int(72 * width / (3.6 * longest + 36)))
    figure.set_size_inches(width, height + 0.17 * math.ceil(len(styles) / columns))
    handles = [_handle(style) for style in styles]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=7.5, columnspacing=1.2)


def _handle(style: Style) -> Artist:
    if style.swatch.startswith("swatch"):
        return Patch(label=style.label, **area(style))
    if style.swatch == "behind":
        look: dict[str, Any] = {"linewidth": 4.5, "alpha": 0.5}
    elif style.swatch:
        look = ACROSS if style.swatch == "dashed" else ACROSS_PLUS
    else:
        look = {"linestyle": style.line, **marker(style, 4.5)}
    return Line2D([], [], color=style.colour, label=style.label, **look)


def area(style: Style) -> dict[str, Any]:
    """Return the look of an area as arguments of matplotlib."""
    hatch = "////" if "hatched" in style.swatch else ""
    return {"facecolor": style.colour, "hatch": hatch, "edgecolor": PAPER, "linewidth": 0}


def caption(figure: Figure, text: str) -> None:
    """Put a line at the lower left and make room for it."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.15)
    figure.supxlabel(text, x=0.02, ha="left", fontsize=6.5, color=FAINT)


def line(ax: Axes, means: Sequence[tuple[float, float]], style: Style, runs: Sequence[tuple[float, float]]) -> None:
    """Draw means, with every run behind them where there is more than one for some x; (x, score), scores in [0, 1]."""
    xs, ys = _places(means, style)
    size = 4.5 if len(means) <= _MANY else 2.0
    ax.plot(xs, ys, color=style.colour, linestyle=style.line, linewidth=1.4, zorder=3, **marker(style, size))
    if len(runs) > len(means):
        dots(ax, runs, style)


def _places(points: Sequence[tuple[float, float]], style: Style) -> tuple[list[float], list[float]]:
    """Return x, shifted, and per cent."""
    return [x + style.shift for x, _ in points], [100 * value for _, value in points]


def dots(ax: Axes, runs: Sequence[tuple[float, float]], style: Style, big: bool = False) -> None:
    """Draw single runs."""
    alpha, size = (1.0, 4.5) if big else (0.5, 2.5)
    xs, ys = _places(runs, style)
    ax.plot(xs, ys, color=style.colour, linestyle="", alpha=alpha, zorder=2, **marker(style, size))


def estimates(
    ax: Axes, means: Mapping[int, Estimate], style: Style, runs: Sequence[tuple[int, float]] = ()
) -> list[Estimate]:
    """Draw means by n with their intervals, and the runs behind them; return the means."""
    if means:
        line(ax, [(n, mean.value) for n, mean in means.items()], style, runs)
    for n, mean in means.items():
        interval(ax, n + style.shift, mean, style.colour)
    return list(means.values())


def shadow(ax: Axes, means: Sequence[tuple[int, float]], style: Style) -> None:
    """Draw a curve of another study behind those of this one, broad and pale, without markers."""
    xs, ys = _places(means, style)
    ax.plot(xs, ys, color=style.colour, linewidth=4.5, alpha=0.3, zorder=1.5, solid_capstyle="round")


def marker(style: Style, size: float) -> dict[str, Any]:
    """Return the marker of `style` as arguments of matplotlib; `size` in points."""
    edge = PAPER if style.filled and size > 4 else style.colour
    face = style.colour if style.filled else PAPER
    return {
        "marker": style.marker,
        "markersize": size * (1.5 if style.marker == "*" else 1),  # its points are thin
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 0.5 if style.filled else 1.0,
    }


def interval(ax: Axes, x: float, estimate: Estimate, colour: str) -> None:
    """Draw the 95 % interval of a mean, where it has one."""
    if estimate.half is not None:
        ends = [100 * (estimate.value - estimate.half), 100 * (estimate.value + estimate.half)]
        # Not `plot`, after which the axis would make room for it: that is for `fit` to weigh.
        ax.add_artist(Line2D([x, x], ends, color=colour, linewidth=1.0, zorder=2.5, solid_capstyle="butt"))


def fit(ax: Axes, estimates: Iterable[Estimate]) -> None:
    """Set the scale by the curves, and by the intervals as long as the curves keep half of the height."""
    low, high = ax.dataLim.intervaly
    spare = max(high - low, 0.1) / 2
    known = [(e.value, e.half) for e in estimates if e.half is not None]
    bottom = max(min([low, *(100 * (value - half) for value, half in known)]), low - spare)
    top = min(max([high, *(100 * (value + half) for value, half in known)]), high + spare)
    margin = max(0.05 * (top - bottom), (0.2 - top + bottom) / 2)  # no scale finer than a tenth of a point
    ax.set_ylim(bottom - margin, top + margin)


def crosses(ax: Axes, results: Sequence[Result], targets: Sequence[str]) -> None:
    """Draw a cross where diverged networks ended; no mean counts them."""
    for result in results:
        if result.target in targets and result.state == "diverged":
            top1 = result.last_top1
            if top1 is not None and math.isfinite(top1):
                colour = STYLES[result.treatment].colour
                ax.plot([result.n], [100 * top1], color=colour, marker="x", markersize=6, zorder=4)


def across(ax: Axes, top1: float, colour: str = INK, **look: Any) -> None:
    """Draw a reference across the panel; `top1` in [0, 1]."""
    ax.axhline(100 * top1, color=colour, zorder=1, **(look or ACROSS))


def chance(ax: Axes, level: float) -> None:
    """Draw the score of guessing across the panel, with its name."""
    across(ax, level, FAINT, linewidth=0.9, linestyle=(0, (1, 2)))
    ax.annotate("chance", (0, 100 * level), (4, 2), color=FAINT, fontsize=7,
                xycoords=ax.get_yaxis_transform(), textcoords="offset points")  # fmt: skip


def logarithmic_axis(ax: Axes, ticks: Mapping[float, str]) -> None:
    """Make the x axis logarithmic, with those of `ticks` (position -> label) that leave room for their labels."""
    spaced: list[float] = []
    for tick in sorted(ticks):
        if not spaced or tick >= _TICK_RATIO * spaced[-1]:
            spaced.append(tick)
    ax.set_xscale("log")
    ax.set_xticks(spaced, [ticks[tick] for tick in spaced])
    ax.xaxis.set_minor_locator(NullLocator())


def grid(ax: Axes) -> None:
    """Draw faint lines across, behind everything."""
    ax.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def nothing(ax: Axes, drawn: bool, why: str = "nothing to compare yet") -> None:
    """Say `why` where nothing is drawn."""
    if not drawn:
        ax.set_yticks([])  # a scale of nothing
        ax.text(0.5, 0.55, why, transform=ax.transAxes, ha="center", va="center", color=FAINT)
