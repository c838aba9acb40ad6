"""The tables printed in a terminal, in 80 columns: of a study, n down and treatments across, and of several studies.

The verdict on the bases comes first, then every treatment with its difference from the base, then the effects that the
study has, those at equal training before the paper's, with intervals. Columns that do not fit go into a table below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fasttransfer.core.intervals import Estimate
from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis.comparison import Comparison, StudyGroup
from fasttransfer.report.analysis.effects import AT_EQUAL_TRAINING, CO_ADAPTATION, NOT_COUNTED, WORTHS, Effect
from fasttransfer.report.analysis.summary import Row, Summary, summarise
from fasttransfer.report.numbers import (
    amount,
    count,
    decimals,
    half,
    intervals,
    label,
    per_cent,
    plain,
    points,
    signed,
    some,
)
from fasttransfer.report.stages import Stages
from fasttransfer.report.verdict import verdict
from fasttransfer.study.chance import mean_chance
from fasttransfer.study.records import Score, StudyResults

_WIDTH = 80
_WHICH: dict[Score, str] = {"last": "last check", "best10": "ten best checks"}


def grid(
    left: Sequence[str], right: Sequence[str], *, padding: tuple[int, int, int, int] = (0, 1, 0, 0), edge: bool = False
) -> Table:
    """Return a table without rows, its columns headed by `left` and `right` and aligned to that side.

    `padding` is around each cell: above, right, below, left; `edge`: at the outer sides of the table as well.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=padding, pad_edge=edge, header_style="bold")
    for heading in left:
        table.add_column(Text(heading), no_wrap=True)  # Text, for "[1]" would be read as a style
    for heading in right:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


Cells = Sequence[str | Text]


def stage_columns(stages: Stages, cuts: Sequence[int], head: str = "n") -> dict[str, Cells]:
    """Return the columns that say which cut each row is of, by heading: n and, where it is known, the stage's name."""
    columns = {head: [str(n) for n in cuts], "stage": [stages.short_name(n) for n in cuts]}
    return {name: cells for name, cells in columns.items() if name == head or stages.names}


def packed(
    left: Mapping[str, Cells],
    right: Mapping[str, Cells],
    *,
    padding: tuple[int, int, int, int] = (0, 1, 0, 0),
    edge: bool = False,
) -> list[Table]:
    """Return tables of the columns `left` and as many of `right` as fit into 80 characters, until all are shown.

    Args:
        left, right: heading -> cells of rows; those of `right`, and numbers of cuts, are aligned to the right.
        padding, edge: see `grid`.
    """
    gap = 1 + padding[1] + padding[3]

    def width(columns: Mapping[str, Cells]) -> int:
        lines = {head: [line for cell in cells for line in str(cell).split("\n")] for head, cells in columns.items()}
        return sum(gap + max(map(len, (head, *found))) for head, found in lines.items())

    groups: list[dict[str, Cells]] = [{}]
    for head, cells in right.items():
        if groups[-1] and width(left) + width({**groups[-1], head: cells}) > _WIDTH + gap:
            groups.append({})
        groups[-1][head] = cells
    tables = []
    for group in groups:
        table = grid([], [], padding=padding, edge=edge)
        for head in (*left, *group):
            is_left = head in left and head not in ("n", "cut")
            table.add_column(Text(head), justify="left" if is_left else "right", no_wrap=True)
        for row in zip(*left.values(), *group.values(), strict=True):
            table.add_row(*row)
        tables.append(table)
    return tables


def table(recorded: StudyResults, *, score: Score = "last") -> RenderableType:
    """Return the tables of a study for rich: top-1 in per cent, differences and effects in points."""
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    if summary.base is None and not any(row.top1 for row in summary.rows):
        return Text(f"Nothing to compare yet: no network is finished ({_progress(recorded)}).")
    digits = decimals(recorded.facts, summary.targets)
    judged = verdict(recorded, score)
    parts: list[RenderableType] = [] if judged is None else [Text(plain(judged.text))]
    parts.append(Text(_base_line(recorded, summary, digits)))
    stages = Stages.of(recorded.facts)
    left = stage_columns(stages, [row.n for row in summary.rows])
    if summary.rows:
        tops = {name: [_cell(row, name, digits) for row in summary.rows] for name in summary.treatments}
        parts += packed(left, tops, padding=(0, 0, 0, 0))
    shown = (*AT_EQUAL_TRAINING, *WORTHS, CO_ADAPTATION)
    effects = [effect for effect in shown if any(row[effect] for row in summary.rows)]
    if effects:
        costs = {one.heading: [plain(amount(one, row[one], digits)) for row in summary.rows] for one in effects}
        parts += packed(left, costs, padding=(0, 0, 0, 1), edge=True)
    return Group(*parts, Text(plain(_note(recorded, summary, effects))))


def _base_line(recorded: StudyResults, summary: Summary, digits: int) -> str:
    if summary.base is None:
        return "base: not finished"
    text = f"base {per_cent(summary.base.value, digits)} %"
    if len(summary.targets) > 1:
        text += f" ({', '.join(f'{t} {per_cent(base.value, digits)}' for t, base in summary.bases.items())})"
    if summary.base_plus is not None:
        text += f", base+ {per_cent(summary.base_plus.value, digits)} %"
    level = mean_chance(recorded.facts, summary.targets)
    return text if level is None else f"{text}, chance {per_cent(level, digits)} %"


def _cell(row: Row, treatment: str, digits: int) -> str:
    top1, difference = row.top1.get(treatment), row.difference.get(treatment)
    if top1 is None:
        return "-"
    bracket = f"({plain(points(difference.value, digits))})" if difference else ""
    # Numbers of a column stand under each other whatever the width of their differences.
    return f"{per_cent(top1.value, digits)} {bracket:>{5 + 2 * (digits > 0)}}"


def _note(recorded: StudyResults, summary: Summary, effects: Sequence[Effect]) -> str:
    unit = recorded.facts.get("seeds_are", "seeds").removesuffix("s")
    behind = f"{count(len(summary.targets), 'target')} and {count(len(summary.seeds), unit)}"
    lines = [
        f"Top-1 in %, mean over {behind}, {_WHICH[summary.score]}.",
        "In brackets: minus the base of the same target and seed, the paper's comparison.",
    ]
    if equal := [f"{effect.heading}: {effect.networks}" for effect in effects if not effect.is_from_base]:
        lines.append(f"Points, at equal training: {'; '.join(equal)}.")
    if any(effect in WORTHS for effect in effects):
        lines.append(f"Of worth: {NOT_COUNTED}.")
    if CO_ADAPTATION in effects:
        lines.append(f"{CO_ADAPTATION.heading}: {CO_ADAPTATION.networks}, the paper's comparison.")
    estimates = [estimate for row in summary.rows for effect in effects if (estimate := row[effect])]
    made_of = intervals(estimates, f"{unit}s")
    if made_of:
        lines.append(f"{made_of}.")
    planned = len(summary.targets) * len(summary.seeds)
    if any(top1.runs < planned for row in summary.rows for top1 in row.top1.values()):
        lines.append("Where runs are missing, top-1 is of those there are; brackets stay paired.")
    if len(summary.seeds) == 1:
        further = "another may move a number further" if made_of else "no interval, small differences may be chance"
        lines.append(f"One seed: {further}.")
    lines.append(f"views: {describe_views(recorded.study)}.")
    if recorded.facts.get("synthetic"):
        lines.append("The images are synthetic.")
    for state, what in (
        ("diverged", "Diverged, not counted"),
        ("skipped", "Not trained, for their source diverged or is stuck"),
        ("stuck", "Stuck at chance, ended early, counted"),
    ):
        if names := [label(r, len(summary.seeds) > 1) for r in recorded.results if r.state == state]:
            lines.append(f"{what}: {some(names)}.")
    if any(result.waiting for result in recorded.results):
        lines.append(f"Unfinished: {_progress(recorded)}; the rest is not counted.")
    return "\n".join(lines)


def _progress(recorded: StudyResults) -> str:
    done = sum(result.trained for result in recorded.results)
    return f"{done} of {count(len(recorded.results), 'network')} done"


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
    which = _WHICH[comparison.score]
    equal = [line for line in comparison.lines if not line.effect.is_from_base]
    if equal:
        named = "; ".join(f"{part.name}: {part.networks}" for part in dict.fromkeys(line.effect for line in equal))
        worth = f" Of worth, {NOT_COUNTED}." if any(line.effect in WORTHS for line in equal) else ""
        parts += [table for group in comparison.groups for table in _lines(group, letters, "part")]
        parts.append(Text(f"Points of top-1 at equal training, mean over targets, {which}. {named}.{worth}"))
    if len(equal) < len(comparison.lines):
        parts += [table for group in comparison.groups for table in _lines(group, letters, "treatment")]
        parts.append(
            Text(
                f"Points of top-1 from the base of the same target and seed, mean over targets, {which}: the "
                "paper's comparison. A base has had one schedule of training, one that copies a base two."
            )
        )
    if comparison.lines:
        estimates = [one for line in comparison.lines for one in line.estimates if one is not None]
        if made_of := intervals(estimates):
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


def _lines(group: StudyGroup, letters: Sequence[str], what: str) -> list[Table]:
    """Return tables with a row for each "part" or "treatment" of a group at each n, named where the name changes."""
    lines = [line for line in group.lines if line.effect.is_from_base == (what == "treatment")]
    if not lines:
        return []
    first, *others = [letters[i] for i in group.members]
    heads = [first, *others, *(f"{letter} - {first}" for letter in others)]
    rows = [[_amount(one) for one in (*line.estimates, *line.apart[1:])] for line in lines]
    before = ["", *(line.effect.name for line in lines)]
    names = ["" if line.effect.name == last else line.effect.name for line, last in zip(lines, before, strict=False)]
    left = {what: names, **stage_columns(group.stages, [line.n for line in lines])}
    return packed(left, dict(zip(heads, zip(*rows, strict=True), strict=True)))


def _amount(one: Estimate | None) -> str:
    return "-" if one is None else plain(signed(one))
