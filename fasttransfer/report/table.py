"""The table printed when a grid is done: n down, treatments across, in 80 columns, terminal or not."""

from __future__ import annotations

from dataclasses import replace

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fasttransfer.analysis import Estimate, Row, Score, Summary, mean_chance, summarise
from fasttransfer.features.views import views_of
from fasttransfer.records import Recorded
from fasttransfer.report.numbers import MINUS, cost, count, decimals, label, per_cent, points, some


def table(recorded: Recorded, *, score: Score = "last") -> RenderableType:
    """Top-1 in per cent, mean over targets and seeds, in brackets the difference from the base; for rich."""
    summary = summarise(recorded.results, score=score)
    if summary.base is None and not any(row.top1 for row in summary.rows):
        return Text(f"Nothing to compare yet: no network is finished ({_progress(recorded)}).")
    digits = decimals(recorded.facts, summary.targets)
    rows = [_grid(summary, digits)] if summary.rows else []
    return Group(Text(_base_line(recorded, summary, digits)), *rows, Text(_note(recorded, summary)))


def _base_line(recorded: Recorded, summary: Summary, digits: int) -> str:
    if summary.base is None:
        return "base: not finished"
    text = f"base {per_cent(summary.base.value, digits)} %"
    if len(summary.targets) > 1:
        alone = [(t, summarise(recorded.results, score=summary.score, target=t).base) for t in summary.targets]
        text += f" ({', '.join(f'{t} {per_cent(base.value, digits)}' for t, base in alone if base)})"
    level = mean_chance(recorded.facts, summary.targets)
    return text if level is None else f"{text}, chance {per_cent(level, digits)} %"


def _grid(summary: Summary, digits: int) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    grid.add_column("n", justify="right")
    for treatment in summary.treatments:
        grid.add_column(treatment, justify="right", no_wrap=True)
    split = {"selffer", "transfer"} <= set(summary.treatments)
    if split:
        grid.add_column("co-ad.", justify="right", no_wrap=True)
        grid.add_column("spec.", justify="right", no_wrap=True)
    for row in summary.rows:
        cells = [_cell(row, treatment, digits) for treatment in summary.treatments]
        if split:
            cells += [_part(row.co_adaptation, digits), _part(row.specificity, digits)]
        grid.add_row(str(row.n), *cells)
    return grid


def _cell(row: Row, treatment: str, digits: int) -> str:
    top1 = row.top1.get(treatment)
    if top1 is None:
        return "-"
    difference = row.difference.get(treatment)
    bracket = f"({_plain(points(difference.value, digits))})" if difference else ""
    # Numbers of a column stand under each other whatever the width of their differences.
    return f"{per_cent(top1.value, digits)} {bracket:>{5 + 2 * (digits > 0)}}"


def _part(estimate: Estimate | None, digits: int) -> str:
    return "-" if estimate is None else _plain(cost(replace(estimate, half=None), digits))


def _plain(text: str) -> str:
    return text.replace(MINUS, "-")  # a terminal's encoding may lack the real sign


def _note(recorded: Recorded, summary: Summary) -> str:
    unit = recorded.facts.get("seeds_are", "seeds").removesuffix("s")
    behind = f"{count(len(summary.targets), 'target')} and {count(len(summary.seeds), unit)}"
    which = "last check" if summary.score == "last" else "ten best checks"
    lines = [
        f"Top-1 in %, mean over {behind}, {which}.",
        "In brackets: minus the base of the same target and seed.",
    ]
    if {"selffer", "transfer"} <= set(summary.treatments):
        lines.append("co-ad.: base - selffer; spec.: selffer - transfer; both in points lost.")
    planned = len(summary.targets) * len(summary.seeds)
    if any(top1.runs < planned for row in summary.rows for top1 in row.top1.values()):
        lines.append("Where runs are missing, top-1 is of those there are; brackets stay paired.")
    if len(summary.seeds) == 1:
        lines.append("One seed: no interval, small differences may be chance.")
    lines.append(f"views: {views_of(recorded.study)}.")
    if recorded.facts.get("synthetic"):
        lines.append("The pictures are synthetic.")
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


def _progress(recorded: Recorded) -> str:
    done = sum(result.trained for result in recorded.results)
    return f"{done} of {count(len(recorded.results), 'network')} done"
