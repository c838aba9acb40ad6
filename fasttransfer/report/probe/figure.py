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
    asked = probed.request
    ax.set_title(f"{asked.cell.name}, heads on {asked.task}, {len(asked.classes)} classes")
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("training images per class")
    styles = [Style(f"cut {cut}", drawing.layer_colour(cut), _MARKERS[cut - 1]) for cut in probed.settings.cuts]
    for i, (cut, style) in enumerate(zip(probed.settings.cuts, styles, strict=True)):
        spread = 1.03 ** (i - (len(styles) - 1) / 2)  # beside each other, not on top
        at = {k: images * spread for k, images in sorted(probed.examples.items(), key=lambda item: item[1])}
        means = {k: probed.top1(cut, k) for k in at}
        seeds = [(x, head.val_top1) for k, x in at.items() for head in probed.chosen(cut, k)]
        drawing.line(ax, [(at[k], mean.value) for k, mean in means.items()], style, seeds)
        for k, mean in means.items():
            drawing.interval(ax, at[k], mean, style.colour)
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
