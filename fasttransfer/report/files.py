"""The files of a report: each takes its place whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from fasttransfer.core.files import make_folder, replace_file
from fasttransfer.report import drawing, svg


def write_files(folder: Path, figures: Mapping[str, Figure], texts: Mapping[str, str], caption: str = "") -> Path:
    """Write each figure as SVG, PDF and PNG, with `caption` below it, then `texts` by their file names.

    Returns:
        the path of the last file.

    Raises:
        InputError: the folder cannot be written.
    """
    files: dict[str, bytes] = {}
    make_folder(folder)
    for name, figure in figures.items():
        if caption:
            with svg.settings():
                drawing.caption(figure, caption)
        for kind, encode in (("svg", svg.svg), ("pdf", svg.pdf), ("png", svg.png)):
            files[f"{name}.{kind}"] = encode(figure)
            figure.set_layout_engine("none")  # laid out once: that takes as long as drawing
    for name, content in {**files, **{name: text.encode() for name, text in texts.items()}}.items():
        path = folder / name
        with replace_file(path) as file:
            file.write(content)
    return path
