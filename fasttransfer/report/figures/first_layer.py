"""The figure of the bases' first filters."""

from __future__ import annotations

from matplotlib.figure import Figure

from fasttransfer.report import drawing
from fasttransfer.report.filters import first_filters, montage
from fasttransfer.report.svg import settings
from fasttransfer.study.records import StudyResults


@settings()
def filters(recorded: StudyResults, *, target: str | None = None) -> Figure:
    """Draw the filters that read the image, of every trained base of the first seed, from `weights/`.

    Each filter is scaled by its own largest weight: grey is zero, the colours are the signs of red, green and blue.
    """
    found = {task: filters for task, filters in first_filters(recorded).items() if target in (None, task)}
    sheets = {task: montage(filters.weights) for task, filters in found.items()}
    height = max((drawing.PANEL[0] * sheet.shape[0] / sheet.shape[1] for sheet in sheets.values()), default=1.0)
    size = drawing.PANEL[0], height + 0.25  # inches, for the title
    figure, axes = drawing.panels(max(1, len(sheets)), columns=2, size=size)
    for (task, sheet), ax in zip(sheets.items(), axes, strict=False):
        count, _, side, _ = found[task].weights.shape
        ax.set_title(f"base{task}: {found[task].layer}, {count} filters of {side} x {side}")
        ax.imshow(sheet, interpolation="none")
    for ax in axes:
        ax.set_axis_off()
        drawing.nothing(ax, bool(sheets), "no weights here")
    return figure
