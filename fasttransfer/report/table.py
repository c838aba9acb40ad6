"""The tables printed when a grid is done: n down, treatments across, in 80 columns, terminal or not.

The verdict on the bases comes first, then every treatment with its difference from the base, then what the study
compares at equal training, with intervals.
"""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis import PARTS, Estimate, Row, Score, Summary, mean_chance, summarise
from fasttransfer.report.numbers import cost, count, decimals, intervals, label, per_cent, plain, points, signed, some
from fasttransfer.report.verdict import verdict
from fasttransfer.study.records import StudyResults


def table(recorded: StudyResults, *, score: Score = "last") -> RenderableType:
    """Top-1 in per cent, mean over targets and seeds, in brackets the difference from the base; for rich."""
    summary = summarise(recorded.results, score=score, facts=recorded.facts)
    if summary.base is None and not any(row.top1 for row in summary.rows):
        return Text(f"Nothing to compare yet: no network is finished ({_progress(recorded)}).")
    digits = decimals(recorded.facts, summary.targets)
    told = verdict(recorded, score)
    parts: list[RenderableType] = [Text(plain(told.text))] if told is not None else []
    parts.append(Text(_base_line(recorded, summary, digits)))
    if summary.rows:
        parts.append(_grid(summary, digits))
    columns = _columns(summary)
    if columns:
        parts.append(_costs(summary, columns, digits))
    return Group(*parts, Text(plain(_note(recorded, summary, columns))))


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


def _grid(summary: Summary, digits: int) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    grid.add_column("n", justify="right")
    for treatment in summary.treatments:
        grid.add_column(treatment, justify="right", no_wrap=True)
    for row in summary.rows:
        grid.add_row(str(row.n), *(_cell(row, treatment, digits) for treatment in summary.treatments))
    return grid


def _cell(row: Row, treatment: str, digits: int) -> str:
    top1 = row.top1.get(treatment)
    if top1 is None:
        return "-"
    difference = row.difference.get(treatment)
    bracket = f"({plain(points(difference.value, digits))})" if difference else ""
    # Numbers of a column stand under each other whatever the width of their differences.
    return f"{per_cent(top1.value, digits)} {bracket:>{5 + 2 * (digits > 0)}}"


# Heading -> what it compares; all but the last at equal training.
_COMPARED = {
    "freezing": PARTS["freezing"],
    "specificity": PARTS["specificity"],
    "both": "selffer+ - transfer",
    "boost": PARTS["boost"],
    "co-adapt.": "base - selffer",
}


def _compared(row: Row) -> dict[str, Estimate | None]:
    return {
        "freezing": row.freezing,
        "specificity": row.specificity,
        "both": row.frozen_cost,
        "boost": row.boost,
        "co-adapt.": row.co_adaptation,
    }


def _columns(summary: Summary) -> list[str]:
    """The comparisons that have a number at some n."""
    return [name for name in _COMPARED if any(_compared(row)[name] is not None for row in summary.rows)]


def _costs(summary: Summary, columns: list[str], digits: int) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1), header_style="bold")
    grid.add_column("n", justify="right")
    for name in columns:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in summary.rows:
        found = _compared(row)
        grid.add_row(str(row.n), *(_amount(found[name], digits, is_cost=name != "boost") for name in columns))
    return grid


def _amount(estimate: Estimate | None, digits: int, *, is_cost: bool) -> str:
    if estimate is None:
        return "-"
    return plain(cost(estimate, digits) if is_cost else signed(estimate, digits))


def _note(recorded: StudyResults, summary: Summary, columns: list[str]) -> str:
    unit = recorded.facts.get("seeds_are", "seeds").removesuffix("s")
    behind = f"{count(len(summary.targets), 'target')} and {count(len(summary.seeds), unit)}"
    which = "last check" if summary.score == "last" else "ten best checks"
    lines = [
        f"Top-1 in %, mean over {behind}, {which}.",
        "In brackets: minus the base of the same target and seed, the paper's comparison.",
    ]
    equal = [name for name in columns if name != "co-adapt."]
    if equal:
        lines.append(f"Points, at equal training: {'; '.join(f'{name}: {_COMPARED[name]}' for name in equal)}.")
    if "co-adapt." in columns:
        lines.append(f"co-adapt.: {_COMPARED['co-adapt.']}, the paper's comparison.")
    shown = [found for row in summary.rows for name in columns if (found := _compared(row)[name]) is not None]
    made_of = intervals(shown, f"{unit}s")
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
    several = len(summary.seeds) > 1
    diverged = [label(result, several) for result in recorded.results if result.state == "diverged"]
    if diverged:
        lines.append(f"Diverged, not counted: {some(diverged)}.")
    if skipped := [label(result, several) for result in recorded.results if result.state == "skipped"]:
        lines.append(f"Not trained, for their source diverged or is stuck: {some(skipped)}.")
    if stuck := [label(result, several) for result in recorded.results if result.state == "stuck"]:
        lines.append(f"Stuck at chance, ended early, counted: {some(stuck)}.")
    if any(result.waiting for result in recorded.results):
        lines.append(f"Unfinished: {_progress(recorded)}; the rest is not counted.")
    return "\n".join(lines)


def _progress(recorded: StudyResults) -> str:
    done = sum(result.trained for result in recorded.results)
    return f"{done} of {count(len(recorded.results), 'network')} done"
