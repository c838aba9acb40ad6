"""Top-1 against the examples of each class, a curve a cut."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from fasttransfer.probe.sweep import ProbeResults
from fasttransfer.report import drawing
from fasttransfer.report.drawing import Style
from fasttransfer.report.probe.beside import StudyReference
from fasttransfer.report.svg import FAINT, INK, settings

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_APART = 1.6  # between ticks of the logarithmic axis, so that their labels do not touch


@settings()
def accuracy(probed: ProbeResults, beside: StudyReference) -> Figure:
    """Means over seeds with their 95 % intervals, and every seed a point; chance and the study's base across."""
    figure, (ax,) = drawing.panels(1)
    asked = probed.request
    ax.set_title(f"{asked.cell.name}, heads on {asked.task}, {len(asked.classes)} classes")
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("training images per class")
    ax.set_xscale("log")
    handles: list[Line2D] = []
    for i, cut in enumerate(probed.settings.cuts):
        spread = 1.03 ** (i - (len(probed.settings.cuts) - 1) / 2)  # beside each other, not on top
        colour = drawing.layer_colour(cut)
        style = Style(f"cut {cut}", colour, _MARKERS[cut - 1], "-", True, 0.0)
        at = {k: images * spread for k, images in sorted(probed.examples.items(), key=lambda item: item[1])}
        for k, x in at.items():
            seeds = [head.val_top1 for head in probed.chosen(cut, k)]
            if len(seeds) > 1:
                drawing.dots(ax, [x] * len(seeds), seeds, style)
            drawing.interval(ax, x, probed.top1(cut, k), colour)
        ax.plot(
            list(at.values()),
            [100 * probed.top1(cut, k).value for k in at],
            color=colour,
            linewidth=1.4,
            zorder=3,
            **drawing.marker(style, 4.5),
        )
        handles.append(Line2D([], [], color=colour, label=style.label, **drawing.marker(style, 4.5)))
    ticks: list[tuple[float, str]] = []
    for k, images in sorted(probed.examples.items(), key=lambda item: item[1]):
        if not ticks or images >= _APART * ticks[-1][0]:
            ticks.append((images, f"{images:,.0f}" if k is not None else f"all ({images:,.0f})"))
    ax.set_xticks([x for x, _ in ticks], [label for _, label in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    level = 100 / len(asked.classes)
    ax.axhline(level, color=FAINT, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    ax.annotate("chance", (0, level), (4, 2), color=FAINT, fontsize=7,
                xycoords=ax.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
    if beside.base is not None:
        name, top1 = beside.base
        ax.axhline(100 * top1, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        handles.append(Line2D([], [], color=INK, linestyle=(0, (5, 3)), linewidth=0.9, label=f"{name}, whole network"))
    ax.set_ylim(bottom=0)
    drawing.grid(ax)
    drawing.legend(figure, handles)
    return figure
