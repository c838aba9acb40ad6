"""Studies side by side as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.comparison import Comparison, Line
from fasttransfer.report.analysis.summary import PARTS
from fasttransfer.report.numbers import count, half, intervals, per_cent, plain, signed
from fasttransfer.report.verdict import verdict


def comparison_table(comparison: Comparison) -> RenderableType:
    """Every study's differences and how far they are from the first study's, bases by volume; for rich."""
    parts: list[RenderableType] = []
    letters = [f"[{i}]" for i in range(1, len(comparison.names) + 1)]
    for letter, name, study in zip(letters, comparison.names, comparison.studies, strict=True):
        done = sum(result.trained for result in study.results)
        total = len(study.results)
        parts.append(Text(f"{letter} {name}" + (f", {done} of {count(total, 'network')} done" if done < total else "")))
        if judged := verdict(study, comparison.score):
            parts.append(Padding(Text(plain(judged.text)), (0, 0, 0, len(letter) + 1)))
    if comparison.lines:
        apart = [f"{letter} - [1]" for letter in letters[1:]]
        which = "last check" if comparison.score == "last" else "ten best checks"
        equal = [line for line in comparison.lines if line.treatment in PARTS]
        from_base = [line for line in comparison.lines if line.treatment not in PARTS]
        if equal:
            told = "; ".join(f"{name}: {what}" for name, what in PARTS.items() if name in {e.treatment for e in equal})
            parts += [
                _lines(equal, [*letters, *apart], "part"),
                Text(f"Points of top-1 at equal training, mean over targets, {which}. {plain(told)}."),
            ]
        if from_base:
            parts += [
                _lines(from_base, [*letters, *apart], "treatment"),
                Text(
                    f"Points of top-1 from the base of the same target and seed, mean over targets, {which}: the "
                    "paper's comparison. A base has had one schedule of training, the others two."
                ),
            ]
        shown = [one for line in comparison.lines for one in line.differences if one is not None]
        if made_of := intervals(shown):
            parts.append(Text(f"{plain(made_of)}; of each number by itself."))
    if comparison.volumes:
        volumes = _grid(["study", "target"], ["images per class", "base, %", "chance, %"])
        volumes.add_column("", no_wrap=True)
        for volume in comparison.volumes:
            level = "" if volume.chance is None else per_cent(volume.chance)
            base = per_cent(volume.base.value) + plain(half(volume.base))
            where = letters[comparison.names.index(volume.study)]
            stuck = "stuck" if volume.stuck else ""
            volumes.add_row(where, volume.target, f"{volume.per_class:.0f}", base, level, stuck)
        parts.append(volumes)
    return Group(*parts, *(Text(plain(note)) for note in comparison.notes))


def _lines(lines: Sequence[Line], heads: Sequence[str], what: str) -> Table:
    """A row for each of `lines`, named where the name changes."""
    grid = _grid([what, "n"], heads)
    before = ""
    for line in lines:
        cells = [_amount(one) for one in (*line.differences, *line.apart[1:])]
        grid.add_row("" if line.treatment == before else line.treatment, str(line.n), *cells)
        before = line.treatment
    return grid


def _grid(left: Sequence[str], right: Sequence[str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in left:
        grid.add_column(heading, no_wrap=True)
    for heading in right:
        grid.add_column(Text(heading), justify="right", no_wrap=True)
    return grid


def _amount(one: Estimate | None) -> str:
    return "-" if one is None else plain(signed(one))
