"""The files of a report: each takes its place whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from fasttransfer.core.files import make_folder, replace_file
from fasttransfer.core.text import printable
from fasttransfer.report import drawing, svg
from fasttransfer.report.attempts import attempt

_KINDS: dict[str, Callable[[Figure], bytes]] = {"svg": svg.svg, "pdf": svg.pdf, "png": svg.png}


def write_files(
    folder: Path, figures: Mapping[str, Callable[[], Figure]], texts: Mapping[str, str], caption: str = ""
) -> Path:
    """Write each figure as SVG, PDF and PNG, with `caption` below it, then `texts` by their file names.

    A figure that cannot be drawn, see `attempt`, has no files, not even those of an earlier report.

    Returns:
        the path of the last file.

    Raises:
        InputError: the folder cannot be written.
    """
    files: dict[str, bytes] = {}
    make_folder(folder)
    for name, draw in figures.items():
        encoded = attempt(partial(_encode, draw, caption), lambda _: {})
        for kind in _KINDS:
            if kind in encoded:
                files[f"{name}.{kind}"] = encoded[kind]
            else:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    for name, content in {**files, **{name: printable(text).encode() for name, text in texts.items()}}.items():
        path = folder / name
        with replace_file(path) as file:
            file.write(content)
    return path


def _encode(draw: Callable[[], Figure], caption: str) -> dict[str, bytes]:
    """Return the figure by kind of file."""
    figure = draw()
    if caption:
        with svg.settings():
            drawing.caption(figure, caption)
    encoded = {}
    for kind, encode in _KINDS.items():
        encoded[kind] = encode(figure)
        figure.set_layout_engine("none")  # laid out once: that takes as long as drawing
    return encoded
