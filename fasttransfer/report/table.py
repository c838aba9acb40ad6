"""The tables printed when a grid is done: n down, treatments across, in 80 columns, terminal or not.

The verdict on the bases comes first, then every treatment with its difference from the base, then the effects that the
study has, those at equal training before the paper's, with intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis import (
    BOOST,
    CO_ADAPTATION,
    FREEZING,
    FROZEN_COST,
    SPECIFICITY,
    Effect,
    Row,
    Score,
    Summary,
    mean_chance,
    summarise,
)
from fasttransfer.report.numbers import amount, count, decimals, intervals, label, per_cent, plain, points, some
from fasttransfer.report.terminal import grid
from fasttransfer.report.verdict import verdict
from fasttransfer.study.records import StudyResults

_EFFECTS = (FREEZING, SPECIFICITY, FROZEN_COST, BOOST, CO_ADAPTATION)


def table(recorded: StudyResults, *, score: Score = "last") -> RenderableType:
    """Return the tables of a study for rich: top-1 in per cent, differences and effects in points."""
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    if summary.base is None and not any(row.top1 for row in summary.rows):
        return Text(f"Nothing to compare yet: no network is finished ({_progress(recorded)}).")
    digits = decimals(recorded.facts, summary.targets)
    judged = verdict(recorded, score)
    parts: list[RenderableType] = [] if judged is None else [Text(plain(judged.text))]
    parts.append(Text(_base_line(recorded, summary, digits)))
    if summary.rows:
        parts.append(_top1(summary, digits))
    effects = [effect for effect in _EFFECTS if any(row[effect] for row in summary.rows)]
    if effects:
        parts.append(_costs(summary, effects, digits))
    return Group(*parts, Text(plain(_note(recorded, summary, effects))))


def _base_line(recorded: StudyResults, summary: Summary, digits: int) -> str:
    if summary.base is None:
        return "base: not finished"
    text = f"base {per_cent(summary.base.value, digits)} %"
    if len(summary.targets) > 1:
        each = {t: summarise(recorded.results, score=summary.score, target=t).base for t in summary.targets}
        text += f" ({', '.join(f'{t} {per_cent(base.value, digits)}' for t, base in each.items() if base)})"
    if summary.base_plus is not None:
        text += f", base+ {per_cent(summary.base_plus.value, digits)} %"
    level = mean_chance(recorded.facts, summary.targets)
    return text if level is None else f"{text}, chance {per_cent(level, digits)} %"


def _top1(summary: Summary, digits: int) -> Table:
    top1 = grid([], ["n", *summary.treatments], padding=(0, 0, 0, 0))
    for row in summary.rows:
        top1.add_row(str(row.n), *(_cell(row, treatment, digits) for treatment in summary.treatments))
    return top1


def _cell(row: Row, treatment: str, digits: int) -> str:
    top1, difference = row.top1.get(treatment), row.difference.get(treatment)
    if top1 is None:
        return "-"
    bracket = f"({plain(points(difference.value, digits))})" if difference else ""
    # Numbers of a column stand under each other whatever the width of their differences.
    return f"{per_cent(top1.value, digits)} {bracket:>{5 + 2 * (digits > 0)}}"


def _costs(summary: Summary, effects: Sequence[Effect], digits: int) -> Table:
    costs = grid([], ["n", *(effect.heading for effect in effects)], padding=(0, 0, 0, 1), edge=True)
    for row in summary.rows:
        costs.add_row(str(row.n), *(plain(amount(effect, row[effect], digits)) for effect in effects))
    return costs


def _note(recorded: StudyResults, summary: Summary, effects: Sequence[Effect]) -> str:
    unit = recorded.facts.get("seeds_are", "seeds").removesuffix("s")
    behind = f"{count(len(summary.targets), 'target')} and {count(len(summary.seeds), unit)}"
    which = "last check" if summary.score == "last" else "ten best checks"
    lines = [
        f"Top-1 in %, mean over {behind}, {which}.",
        "In brackets: minus the base of the same target and seed, the paper's comparison.",
    ]
    if equal := [f"{effect.heading}: {effect.networks}" for effect in effects if not effect.is_from_base]:
        lines.append(f"Points, at equal training: {'; '.join(equal)}.")
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
