"""The templates of the pages, and figures as elements of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

import fasttransfer
from fasttransfer.report.svg import FAINT, INK, inline
from fasttransfer.study.records import Score

SCORES: dict[Score, str] = {
    "last": "the last validation check",
    "best10": "the mean of the ten best validation checks",
}
BOTH_TOGETHER = "frozen transfer, which is both together"  # the legend of a decomposition
_GLYPHS = {  # filled and not
    "": ("", ""), "o": ("●", "○"), "s": ("■", "□"), "D": ("◆", "◇"), "^": ("▲", "△"), "v": ("▼", "▽"), "P": ("✚", "✚"),
}  # fmt: skip
_LINES = {"-": "solid", "--": "dashed", ":": "dotted", "": "none"}
_COLOURS = {INK: "var(--ink)", FAINT: "var(--faint)"}  # those that follow the page into the dark
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


def element(figure: Figure, name: str, label: str) -> Markup:
    """Return a figure to stand in a page; `name` is unique on the page, a screen reader reads `label`."""
    return Markup(inline(figure, name, label))
