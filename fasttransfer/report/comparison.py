"""Tables for the terminal with studies side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis import Comparison, Line
from fasttransfer.report.numbers import count, half, intervals, per_cent, plain, signed
from fasttransfer.report.terminal import grid
from fasttransfer.report.verdict import verdict


def comparison_table(comparison: Comparison) -> RenderableType:
    """Return tables for rich: each study's effects, how far they are from the first study's, and bases by volume."""
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
        equal = [line for line in comparison.lines if not line.effect.is_from_base]
        from_base = [line for line in comparison.lines if line.effect.is_from_base]
        if equal:
            named = "; ".join(f"{part.name}: {part.networks}" for part in dict.fromkeys(line.effect for line in equal))
            parts += [
                _lines(equal, [*letters, *apart], "part"),
                Text(f"Points of top-1 at equal training, mean over targets, {which}. {named}."),
            ]
        if from_base:
            parts += [
                _lines(from_base, [*letters, *apart], "treatment"),
                Text(
                    f"Points of top-1 from the base of the same target and seed, mean over targets, {which}: the "
                    "paper's comparison. A base has had one schedule of training, the others two."
                ),
            ]
        shown = [one for line in comparison.lines for one in line.estimates if one is not None]
        if made_of := intervals(shown):
            parts.append(Text(f"{plain(made_of)}; of each number by itself."))
    if comparison.volumes:
        volumes = grid(["study", "target"], ["images per class", "base, %", "chance, %"])
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
    """Return a table with a row for each of `lines`, named where the name changes."""
    table = grid([what, "n"], heads)
    before = ""
    for line in lines:
        cells = [_amount(one) for one in (*line.estimates, *line.apart[1:])]
        table.add_row("" if line.effect.name == before else line.effect.name, str(line.n), *cells)
        before = line.effect.name
    return table


def _amount(one: Estimate | None) -> str:
    return "-" if one is None else plain(signed(one))
