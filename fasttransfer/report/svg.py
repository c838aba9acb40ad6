"""Figures as bytes: the same results give the same bytes of SVG and PDF, whatever day it is."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from fasttransfer.core.text import printable

INK = "#24292f"  # text and axes
FAINT = "#8c959f"  # grid, chance, notes
PAPER = "#ffffff"  # what lies behind the figure

_SETTINGS: dict[str, Any] = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters stay letters here too
    "svg.fonttype": "none",  # letters stay letters: small files, and a screen reader can read them
    "svg.hashsalt": "fasttransfer",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}
# Not `matplotlib.style`, which reads the user's styles.
_DEFAULTS: dict[Any, Any] = {
    name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
}
_LOCK = threading.RLock()  # matplotlib's settings belong to the process
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def settings() -> Iterator[None]:
    """Give figures their look, whatever the user's matplotlibrc says; also serves as a decorator."""
    with _LOCK, matplotlib.rc_context(_DEFAULTS | _SETTINGS):
        yield


@settings()
def svg(figure: Figure) -> bytes:
    """Return `figure` as an SVG file, coordinates rounded to a hundredth of a point."""
    _make_printable(figure)
    out = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(out, metadata=_NO_METADATA)
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", out.getvalue().decode())
    return text.encode()


@settings()
def pdf(figure: Figure) -> bytes:
    """Return `figure` as a PDF file, for LaTeX."""
    _make_printable(figure)
    out = io.BytesIO()
    FigureCanvasPdf(figure).print_pdf(out, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return out.getvalue()


@settings()
def png(figure: Figure, *, dpi: int = 200) -> bytes:
    """Return `figure` as a PNG file."""
    _make_printable(figure)
    figure.set_dpi(dpi)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _make_printable(figure: Figure) -> None:
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(printable(text.get_text()))
