"""The templates of the pages, and figures as elements of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

import fasttransfer
from fasttransfer.report.attempts import attempt
from fasttransfer.report.drawing import PANEL
from fasttransfer.report.svg import FAINT, INK, PAPER, svg
from fasttransfer.study.records import Score

SCORES: dict[Score, str] = {
    "last": "the last validation check",
    "best10": "the mean of the ten best validation checks",
}
BOTH_TOGETHER = "frozen transfer, which is both together"  # the legend of a decomposition
_GLYPHS = {  # filled and not
    "": ("", ""), "o": ("●", "○"), "s": ("■", "□"), "D": ("◆", "◇"), "^": ("▲", "△"), "v": ("▼", "▽"), "P": ("✚", "✚"),
    "*": ("★", "☆"),
}  # fmt: skip
_LINES = {"-": "solid", "--": "dashed", ":": "dotted", "": "none"}
_COLOURS = {INK: "var(--ink)", FAINT: "var(--faint)", PAPER: "var(--card)"}  # follow the page into the dark
_SVG = Markup(
    '<svg{} viewBox="{}" role="img" aria-label="{}" '
    'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
)
_MISSING = Markup('<p class="note">Missing figure, {}: it cannot be drawn ({}: {}).</p>')
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "tied": lambda text: text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0"),
    "css_colour": lambda style: _COLOURS.get(style.colour, style.colour),
    "css_line": lambda style: _LINES[style.line],
    "glyph": lambda style: _GLYPHS[style.marker][not style.filled],
}


def render(template: str, **values: Any) -> str:
    """Return a whole page."""
    # Jinja drops the last newline of a template; a text file ends in one.
    return _TEMPLATES.get_template(template).render(version=fasttransfer.__version__, **values) + "\n"


def element(draw: Callable[[], Figure], name: str, label: str) -> Markup:
    """Return the figure that `draw` returns as an `<svg>` element of a page, see `attempt`.

    `name` keeps its ids apart from those of the page's other figures; a screen reader reads `label`. The colours of
    ink and background become the page's.
    """
    return attempt(
        lambda: _element(draw(), name, label), lambda error: _MISSING.format(label, type(error).__name__, error)
    )


def _element(figure: Figure, name: str, label: str) -> Markup:
    text = svg(figure).decode()
    head = re.search(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', text)
    assert head is not None
    is_wide = figure.get_figwidth() > PANEL[0]
    body = re.sub(r'\bid="', f'id="{name}-', text[head.end() :])
    body = re.sub(r'(href="#|url\(#)', rf"\1{name}-", body)
    for colour, variable in _COLOURS.items():
        body = body.replace(colour, variable)
    # matplotlib escapes the names of classes and files in its SVGs.
    return _SVG.format(Markup(' class="wide"') if is_wide else "", head[1], label) + Markup(body)  # noqa: S704
