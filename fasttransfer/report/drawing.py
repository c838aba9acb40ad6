"""How treatments look in every figure, and the strokes that the figures are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fasttransfer.report.analysis import Estimate
from fasttransfer.report.svg import FAINT, INK, PAPER
from fasttransfer.study.records import Result

PANEL = (3.3, 2.6)  # inches: a column of a paper of two; what is written in 8 points is read in 8 points


@dataclass(frozen=True)
class Style:
    """How a treatment looks everywhere, never by colour alone: frozen solid and filled, fine-tuned not."""

    label: str
    colour: str  # of Okabe and Ito's palette, told apart by colour-blind readers
    marker: str
    line: Literal["-", "--", ":", "-."]
    filled: bool
    shift: float  # of its points along n, so that treatments do not hide each other


STYLES = {
    "base": Style("base", INK, "D", "-", True, 0.0),
    "base+": Style("base+, one more schedule", INK, "", "-.", False, 0.0),  # a thin line across
    "selffer": Style("selffer, frozen", "#0072b2", "o", "-", True, -0.12),
    "selffer+": Style("selffer+, fine-tuned", "#56b4e9", "o", "--", False, -0.06),
    "transfer": Style("transfer, frozen", "#d55e00", "s", "-", True, 0.12),
    "transfer+": Style("transfer+, fine-tuned", "#e69f00", "s", "--", False, 0.06),
    "random": Style("random, frozen", "#009e73", "^", ":", True, 0.0),
    "random-he": Style("random of He's values", "#cc79a7", "v", ":", True, 0.0),
}
ACROSS_PLUS: dict[str, Any] = {"linestyle": (0, (6, 2, 1, 2)), "linewidth": 0.6}  # dash-dot
# Studies side by side: of the same palette, each with a marker of its own.
STUDY_LOOKS = (
    ("#d55e00", "s"), ("#0072b2", "o"), ("#009e73", "^"), ("#cc79a7", "v"), ("#e69f00", "D"), ("#56b4e9", "P"),
)  # fmt: skip
# From warm (n = 1) to cold (n = 7), all of middle lightness so that they show on a light and on a dark page.
_LAYER_COLOURS = ("#dd9a1f", "#e2743c", "#d65468", "#b8478f", "#8f4fb0", "#6a62c9", "#3f83d6")


def key(treatment: str) -> Line2D:
    """The legend entry of a treatment."""
    style = STYLES[treatment]
    if treatment == "base+":
        return Line2D([], [], color=style.colour, label=style.label, **ACROSS_PLUS)
    line = "--" if treatment == "base" else style.line  # the base is drawn across, dashed
    return Line2D([], [], color=style.colour, linestyle=line, label=style.label, **marker(style, 4.5))


def layer_colour(n: int) -> str:
    """The colour of n copied layers; ink for none."""
    return INK if n == 0 else _LAYER_COLOURS[min(n, len(_LAYER_COLOURS)) - 1]


def panels(
    count: int, *, columns: int = 1, sharey: bool = False, height: float = PANEL[1]
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each a column wide; `height` in inches."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(PANEL[0] * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend below the panels, which makes room for itself."""
    width, height = figure.get_size_inches()
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(
        1, int(72 * width / (3.6 * longest + 36))
    )  # points: letters of this size, and what stands before them
    rows = math.ceil(len(handles) / columns)
    figure.set_size_inches(width, height + 0.17 * rows)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, fontsize=7.5, columnspacing=1.2)


def caption(figure: Figure, text: str) -> None:
    """A line at the lower left, which makes room for itself."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.15)
    figure.supxlabel(text, x=0.02, ha="left", fontsize=6.5, color=FAINT)


def line(ax: Axes, means: Sequence[tuple[int, float]], style: Style, runs: Sequence[tuple[int, float]]) -> None:
    """Mean line with markers, and every run behind it where there is more than one for some n."""
    xs, ys = [n + style.shift for n, _ in means], [100 * value for _, value in means]
    ax.plot(xs, ys, color=style.colour, linestyle=style.line, linewidth=1.4, zorder=3, **marker(style, 4.5))
    if len(runs) > len(means):
        dots(ax, [n + style.shift for n, _ in runs], [value for _, value in runs], style)


def dots(ax: Axes, xs: Sequence[float], values: Sequence[float], style: Style, big: bool = False) -> None:
    """Single runs."""
    ax.plot(
        xs,
        [100 * value for value in values],
        color=style.colour,
        linestyle="",
        alpha=1.0 if big else 0.5,
        zorder=2,
        **marker(style, 4.5 if big else 2.5),
    )


def shadow(ax: Axes, means: Sequence[tuple[int, float]], style: Style) -> None:
    """A curve of another study behind those of this one: broad and pale, without markers."""
    xs, ys = [n + style.shift for n, _ in means], [100 * value for _, value in means]
    ax.plot(xs, ys, color=style.colour, linewidth=4.5, alpha=0.3, zorder=1.5, solid_capstyle="round")


def marker(style: Style, size: float) -> dict[str, Any]:
    """What matplotlib wants to know of a marker; `size` in points."""
    edge = PAPER if style.filled and size > 4 else style.colour
    face = style.colour if style.filled else PAPER
    return {
        "marker": style.marker,
        "markersize": size,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 0.5 if style.filled else 1.0,
    }


def interval(ax: Axes, x: float, estimate: Estimate, colour: str) -> None:
    """The 95 % interval of a mean, where it has one."""
    if estimate.half is not None:
        ends = [100 * (estimate.value - estimate.half), 100 * (estimate.value + estimate.half)]
        # Not `plot`, after which the axis would make room for it: that is for `fit` to weigh.
        ax.add_artist(Line2D([x, x], ends, color=colour, linewidth=1.0, zorder=2.5, solid_capstyle="butt"))


def fit(ax: Axes, estimates: Iterable[Estimate]) -> None:
    """Sets the scale by what is drawn, and by the intervals as long as that leaves it half of the height."""
    low, high = ax.dataLim.intervaly
    spare = max(high - low, 0.1) / 2
    known = [(e.value, e.half) for e in estimates if e.half is not None]
    bottom = max(min([low, *(100 * (value - half) for value, half in known)]), low - spare)
    top = min(max([high, *(100 * (value + half) for value, half in known)]), high + spare)
    margin = max(0.05 * (top - bottom), (0.2 - top + bottom) / 2)  # no scale finer than a tenth of a point
    ax.set_ylim(bottom - margin, top + margin)


def crosses(ax: Axes, results: Sequence[Result], targets: Sequence[str]) -> None:
    """Networks that failed are not part of any mean; a cross says where they ended."""
    for result in results:
        if result.target in targets and result.state == "diverged":
            top1 = result.last_top1
            if top1 is not None and math.isfinite(top1):
                colour = STYLES[result.treatment].colour
                ax.plot([result.n], [100 * top1], color=colour, marker="x", markersize=6, zorder=4)


def layers_axis(ax: Axes, layers: Sequence[int], *, base: bool = False) -> None:
    """n along the axis, after the base where there is one."""
    ticks = [0, *layers] if base else list(layers)
    ax.set_xticks(ticks, ["base" if n == 0 else str(n) for n in ticks])
    if ticks:
        ax.set_xlim(ticks[0] - 0.5, ticks[-1] + 0.5)
    ax.set_xlabel("layers copied, n")
    grid(ax)


def grid(ax: Axes) -> None:
    """Faint lines across, behind everything."""
    ax.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def zero(ax: Axes) -> None:
    """The reference of all differences, across."""
    ax.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)


def nothing(ax: Axes, drawn: bool, why: str = "nothing to compare yet") -> None:
    """Says so where there is nothing to draw."""
    if not drawn:
        ax.set_yticks([])  # a scale of nothing
        ax.text(0.5, 0.55, why, transform=ax.transAxes, ha="center", va="center", color=FAINT)
