"""The figure of a probe: top-1 against the examples of each class, a curve for each cut."""

from __future__ import annotations

from matplotlib.figure import Figure

from fasttransfer.probe.sweep import ProbeResults
from fasttransfer.report import drawing
from fasttransfer.report.drawing import Style
from fasttransfer.report.probe.beside import StudyReference
from fasttransfer.report.svg import INK, settings

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@settings()
def accuracy(probed: ProbeResults, beside: StudyReference) -> Figure:
    """Draw means over seeds with their 95 % intervals, and every seed a point; chance and the study's base across."""
    figure, (ax,) = drawing.panels(1)
    asked = probed.asked
    ax.set_title(f"{asked.cell.name}, heads on {asked.task}, {len(asked.classes)} classes")
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("training images per class")
    styles: list[Style] = []
    for i, cut in enumerate(probed.swept.cuts):
        spread = 1.03 ** (i - (len(probed.swept.cuts) - 1) / 2)  # beside each other, not on top
        colour = drawing.layer_colour(cut)
        style = Style(f"cut {cut}", colour, _MARKERS[cut - 1])
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
        styles.append(style)
    labels = {images: f"{images:,.0f}" if k else f"all ({images:,.0f})" for k, images in probed.examples.items()}
    drawing.logarithmic_axis(ax, labels)
    drawing.chance(ax, 1 / len(asked.classes))
    if beside.base is not None:
        name, top1 = beside.base
        drawing.across(ax, top1)
        styles.append(Style(f"{name}, whole network", INK, swatch="dashed"))
    ax.set_ylim(bottom=0)
    drawing.grid(ax)
    drawing.legend(figure, styles)
    return figure
