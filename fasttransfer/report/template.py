"""The templates of the pages, and what the pages share: keys of figures, figures as elements."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

import fasttransfer
from fasttransfer.report.analysis import SPECIFICITY, Effect, Score
from fasttransfer.report.drawing import STUDY_LOOKS, STYLES
from fasttransfer.report.figures import PART_COLOURS
from fasttransfer.report.svg import inline

SCORES: dict[Score, str] = {
    "last": "the last validation check",
    "best10": "the mean of the ten best validation checks",
}
_GLYPHS = {
    "o": ("●", "○"), "s": ("■", "□"), "D": ("◆", "◇"), "^": ("▲", "△"), "v": ("▼", "▽"), "P": ("✚", "✚"),
}  # fmt: skip
_LINES = {"-": "solid", "--": "dashed", ":": "dotted"}
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["tied"] = lambda text: text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")


@dataclass(frozen=True)
class LegendKey:
    """One entry of what stands below figures: a line with its marker, or a patch of colour (`swatch`)."""

    label: str
    colour: str
    line: str = "solid"
    glyph: str = ""
    swatch: str = ""


def render(template: str, **values: Any) -> str:
    """A page, whole."""
    # Jinja drops the last newline of a template; a text file ends in one.
    return _TEMPLATES.get_template(template).render(version=fasttransfer.__version__, **values) + "\n"


def element(figure: Figure, name: str, label: str) -> Markup:
    """A figure to stand in a page; `name` is its own on the page, `label` is read to who cannot see it."""
    return Markup(inline(figure, name, label))


def treatment_keys(treatments: Iterable[str]) -> list[LegendKey]:
    """What the lines of `treatments` look like, in the order of all figures."""
    wanted = set(treatments)
    keys = []
    for name, style in STYLES.items():
        if name == "base+" and name in wanted:
            keys.append(LegendKey(style.label, "var(--ink)", swatch="dashdot"))
        elif name in wanted:
            line = "dashed" if name == "base" else _LINES[style.line]
            colour = "var(--ink)" if name == "base" else style.colour
            keys.append(LegendKey(style.label, colour, line, _GLYPHS[style.marker][0 if style.filled else 1]))
    return keys


def part_keys(first: Effect) -> list[LegendKey]:
    """What the areas of the decomposition look like: `first` is FREEZING or CO_ADAPTATION."""
    keys = [
        LegendKey(first.name, PART_COLOURS[first], swatch="swatch"),
        LegendKey(SPECIFICITY.name, PART_COLOURS[SPECIFICITY], swatch="swatch hatched"),
    ]
    return [*keys, LegendKey("frozen transfer, which is both together", "var(--ink)", "none", "◆")]


def study_keys(names: Iterable[str], shown: Container[str] | None = None) -> list[LegendKey]:
    """What the lines of studies look like that are drawn side by side: of those `shown`, by default of all."""
    looks = zip(names, cycle(STUDY_LOOKS), strict=False)
    return [
        LegendKey(name, colour, "solid", _GLYPHS[mark][0])
        for name, (colour, mark) in looks
        if shown is None or name in shown
    ]
