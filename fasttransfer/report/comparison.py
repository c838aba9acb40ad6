"""Studies side by side as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fasttransfer.analysis.comparison import Comparison
from fasttransfer.analysis.intervals import Estimate
from fasttransfer.report.numbers import MINUS, count, half, per_cent, points


def comparison_table(comparison: Comparison) -> RenderableType:
    """Differences from the base of every study, how far they are from the first study's, bases by volume; for rich."""
    parts: list[RenderableType] = []
    letters = [f"[{i}]" for i in range(1, len(comparison.names) + 1)]
    for letter, name, study in zip(letters, comparison.names, comparison.studies, strict=True):
        done = sum(result.trained for result in study.results)
        total = len(study.results)
        parts.append(Text(f"{letter} {name}" + (f", {done} of {count(total, 'network')} done" if done < total else "")))
    if comparison.lines:
        apart = [f"{letter} - [1]" for letter in letters[1:]]
        grid = _grid(["treatment", "n"], [*letters, *apart])
        before = ""
        for line in comparison.lines:
            cells = [_amount(one) for one in (*line.differences, *line.apart[1:])]
            grid.add_row("" if line.treatment == before else line.treatment, str(line.n), *cells)
            before = line.treatment
        which = "last check" if comparison.score == "last" else "ten best checks"
        parts += [
            grid,
            Text(
                f"Points of top-1 from the base of the same target and seed, mean over targets, {which}; +- is a 95 % "
                "interval of each number by itself."
            ),
        ]
    if comparison.volumes:
        volumes = _grid(["study", "target"], ["pictures a class", "base, %", "chance, %"])
        volumes.add_column("", no_wrap=True)
        for volume in comparison.volumes:
            level = "" if volume.chance is None else per_cent(volume.chance)
            base = per_cent(volume.base.value) + _plain(half(volume.base))
            where = letters[comparison.names.index(volume.study)]
            stuck = "stuck" if volume.stuck else ""
            volumes.add_row(where, volume.target, f"{volume.per_class:.0f}", base, level, stuck)
        parts.append(volumes)
    return Group(*parts, *(Text(_plain(note)) for note in comparison.notes))


def _grid(left: Sequence[str], right: Sequence[str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in left:
        grid.add_column(heading, no_wrap=True)
    for heading in right:
        grid.add_column(Text(heading), justify="right", no_wrap=True)
    return grid


def _amount(one: Estimate | None) -> str:
    return "-" if one is None else _plain(points(one.value) + half(one))


def _plain(text: str) -> str:
    return text.replace(MINUS, "-").replace("±", "+-")
