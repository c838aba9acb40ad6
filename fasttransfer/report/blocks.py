"""The tables of a page: numbers with their differences, intervals and how many runs are behind them."""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.analysis import Estimate, Summary, class_count, mean_chance, summarise
from fasttransfer.records import Recorded
from fasttransfer.report.numbers import cost, decimals, half, per_cent, points

PART_HEADS = ("n", "lost by transfer", "co-adaptation", "specificity", "transfer+ − base", "transfer+ − selffer+")
Rows = tuple[tuple[str, tuple["Cell", ...]], ...]


@dataclass(frozen=True)
class Cell:
    """What stands in one field of a table: a number, and in small print its difference and its runs."""

    main: str
    small: str = ""
    runs: str = ""  # only where fewer runs are behind it than the study plans


@dataclass(frozen=True)
class Block:
    """The tables of one target, or of the mean over targets."""

    title: str
    base: str
    chance: str
    treatments: tuple[str, ...]
    top1: Rows
    parts: Rows  # none where the study has neither both parts nor fine-tuned networks


def block(recorded: Recorded, summary: Summary, title: str) -> Block:
    """The tables of `summary`."""
    digits = decimals(recorded.facts, summary.targets)
    level = mean_chance(recorded.facts, summary.targets)
    planned = len(summary.targets) * len(summary.seeds)

    def runs(estimate: Estimate) -> str:
        return "" if estimate.runs == planned else f"{estimate.runs} of {planned} runs"

    def top1(estimate: Estimate | None, difference: Estimate | None) -> Cell:
        if estimate is None:
            return Cell("–")
        small = points(difference.value, digits) + half(difference, digits) if difference else ""
        return Cell(per_cent(estimate.value, digits), small, runs(estimate))

    def part(estimate: Estimate | None) -> Cell:
        return Cell("–") if estimate is None else Cell(cost(estimate, digits), "", runs(estimate))

    def boost(estimate: Estimate | None) -> Cell:
        return Cell("–") if estimate is None else Cell(_signed(estimate, digits), "", runs(estimate))

    parts = tuple(
        (
            str(row.n),
            (
                part(row.lost), part(row.co_adaptation), part(row.specificity),
                boost(row.boost), boost(row.boost_over_selffer),
            ),
        )
        for row in summary.rows
    )  # fmt: skip
    return Block(
        title=title,
        base=per_cent(summary.base.value, digits) + half(summary.base, digits) if summary.base else "",
        chance="" if level is None else per_cent(level, digits),
        treatments=summary.treatments,
        top1=tuple(
            (str(row.n), tuple(top1(row.top1.get(name), row.difference.get(name)) for name in summary.treatments))
            for row in summary.rows
        ),
        parts=parts if any(cell.main != "–" for _, cells in parts for cell in cells) else (),
    )


def blocks(recorded: Recorded, summary: Summary) -> list[Block]:
    """The mean over targets where there are several, then each target."""
    found = [block(recorded, summary, "Mean over tasks")] if len(summary.targets) > 1 else []
    for target in summary.targets:
        alone = summarise(recorded.results, score=summary.score, target=target)
        found.append(block(recorded, alone, task_title(recorded, target)))
    return found


def task_title(recorded: Recorded, target: str) -> str:
    """A task and how many classes it has."""
    classes = class_count(recorded.facts, target)
    return f"Task {target}" + (f", {classes} classes" if classes else "")


def _signed(estimate: Estimate, digits: int) -> str:
    return points(estimate.value, digits) + half(estimate, digits)
