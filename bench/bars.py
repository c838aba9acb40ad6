"""Bar charts in the look of the other figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from fasttransfer.report.drawing import PANEL, STYLES
from fasttransfer.report.svg import FAINT, INK, settings

if TYPE_CHECKING:
    from fasttransfer.bench.sections import Chart

_OURS = STYLES["selffer"].colour
_ROW = 0.21  # inches
_LONGEST = 46  # letters of a label; what is longer is cut in the middle


@settings()
def drawn(chart: Chart) -> Figure:
    """Bars below each other with their numbers, the spread of samples as a line."""
    bars = list(chart.bars)
    figure = Figure(figsize=(2 * PANEL[0], 0.5 + _ROW * len(bars)), layout="constrained")
    ax = figure.subplots()
    places = range(len(bars))
    most = max(bar.most or bar.value for bar in bars)
    ax.barh(places, [bar.value for bar in bars], height=0.7, color=[_OURS if bar.ours else FAINT for bar in bars])
    for place, bar in zip(places, bars, strict=True):
        end = bar.value
        if bar.least is not None and bar.most is not None:
            ax.plot([bar.least, bar.most], [place, place], color=INK, linewidth=0.9)
            end = max(end, bar.most)
        ax.text(end + most / 100, place, bar.text, va="center", fontsize=7.5)
    ax.set_yticks(list(places), [_short(bar.label) for bar in bars])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * most)
    ax.set_xticks([])
    ax.tick_params(length=0)
    for side in ("bottom", "left"):
        ax.spines[side].set_visible(False)
    figure.suptitle(chart.title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure


def _short(label: str) -> str:
    half = _LONGEST // 2
    return label if len(label) <= _LONGEST else f"{label[:half]}…{label[-half:]}"
