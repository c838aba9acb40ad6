"""The files of a report: each takes its place whole."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fasttransfer.core.files import replace_file
from fasttransfer.report import drawing, svg


def write(path: Path, content: bytes) -> Path:
    """Write `content`; return `path`."""
    with replace_file(path) as file:
        file.write(content)
    return path


def write_figure(folder: Path, name: str, figure: Figure, caption: str = "") -> None:
    """Write `figure` as SVG, PDF and PNG, with `caption` below it; its layout is final from then on."""
    if caption:
        with svg.settings():
            drawing.caption(figure, caption)
    for kind, encode in (("svg", svg.svg), ("pdf", svg.pdf), ("png", svg.png)):
        write(folder / f"{name}.{kind}", encode(figure))
        figure.set_layout_engine("none")  # laid out once: that takes as long as drawing
