"""The tables of a page: numbers with their differences, intervals and how many runs are behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fasttransfer.report.analysis import Estimate, Summary, class_count, mean_chance, summarise
from fasttransfer.report.numbers import cost, decimals, half, per_cent, points, signed
from fasttransfer.study.records import StudyResults

# At equal training: both networks have had the same number of schedules.
PART_HEADS = (
    "n",
    "freezing: selffer+ − selffer",
    "specificity: selffer − transfer",
    "both: selffer+ − transfer",
    "lasting boost: transfer+ − selffer+",
)
PAPER_HEADS = ("n", "lost by transfer: base − transfer", "co-adaptation: base − selffer", "transfer+ − base")
PART_CAPTION = "Where the points go, at equal training"
PAPER_CAPTION = "The paper's comparison, against the base"
Rows = tuple[tuple[str, tuple["TableCell", ...]], ...]


@dataclass(frozen=True)
class TableCell:
    """What stands in one field of a table: a number, and in small print its difference and its runs."""

    main: str
    small: str = ""
    runs: str = ""  # only where fewer runs are behind it than the study plans


@dataclass(frozen=True)
class Block:
    """The tables of one target, or of the mean over targets."""

    title: str
    base: str
    base_plus: str
    chance: str
    treatments: tuple[str, ...]
    top1: Rows
    parts: Rows  # at equal training; none where the study has no two such networks
    paper: Rows  # from the base


def block(recorded: StudyResults, summary: Summary, title: str) -> Block:
    """The tables of `summary`."""
    digits = decimals(recorded.facts, summary.targets)
    level = mean_chance(recorded.facts, summary.targets)
    planned = len(summary.targets) * len(summary.seeds)

    def runs(estimate: Estimate) -> str:
        return "" if estimate.runs == planned else f"{estimate.runs} of {planned} runs"

    def top1(estimate: Estimate | None, difference: Estimate | None) -> TableCell:
        if estimate is None:
            return TableCell("–")
        small = points(difference.value, digits) + half(difference, digits) if difference else ""
        return TableCell(per_cent(estimate.value, digits), small, runs(estimate))

    def part(estimate: Estimate | None) -> TableCell:
        return TableCell("–") if estimate is None else TableCell(cost(estimate, digits), "", runs(estimate))

    def boost(estimate: Estimate | None) -> TableCell:
        return TableCell("–") if estimate is None else TableCell(signed(estimate, digits), "", runs(estimate))

    parts = tuple(
        (str(row.n), (part(row.freezing), part(row.specificity), part(row.frozen_cost), boost(row.boost)))
        for row in summary.rows
    )
    papers = tuple(
        (str(row.n), (part(row.lost), part(row.co_adaptation), boost(row.boost_over_base))) for row in summary.rows
    )
    return Block(
        title=title,
        base=per_cent(summary.base.value, digits) + half(summary.base, digits) if summary.base else "",
        base_plus=per_cent(summary.base_plus.value, digits) if summary.base_plus else "",
        chance="" if level is None else per_cent(level, digits),
        treatments=summary.treatments,
        top1=tuple(
            (str(row.n), tuple(top1(row.top1.get(name), row.difference.get(name)) for name in summary.treatments))
            for row in summary.rows
        ),
        parts=_unless_empty(parts),
        paper=_unless_empty(papers),
    )


def _unless_empty(rows: Sequence[tuple[str, tuple[TableCell, ...]]]) -> Rows:
    return tuple(rows) if any(cell.main != "–" for _, cells in rows for cell in cells) else ()


def blocks(recorded: StudyResults, summary: Summary) -> list[Block]:
    """The mean over targets where there are several, then each target."""
    found = [block(recorded, summary, "Mean over tasks")] if len(summary.targets) > 1 else []
    for target in summary.targets:
        alone = summarise(recorded.results, score=summary.score, target=target, facts=recorded.facts)
        found.append(block(recorded, alone, task_title(recorded, target)))
    return found


def task_title(recorded: StudyResults, target: str) -> str:
    """A task and how many classes it has."""
    classes = class_count(recorded.facts, target)
    return f"Task {target}" + (f", {classes} classes" if classes else "")
