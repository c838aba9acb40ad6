"""The tables of a page: numbers with their differences, their intervals and the runs behind them."""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.core.intervals import Estimate
from fasttransfer.report.analysis.effects import (
    AT_EQUAL_TRAINING,
    CO_ADAPTATION,
    FROM_BASE,
    LOST,
    NOT_COUNTED,
    WORTHS,
    Effect,
)
from fasttransfer.report.analysis.summary import Row, Summary, summarise
from fasttransfer.report.numbers import amount, decimals, half, networks, per_cent, signed, task_title
from fasttransfer.report.stages import Stages
from fasttransfer.study.chance import mean_chance
from fasttransfer.study.records import StudyResults

_FROM_BASE = (LOST, CO_ADAPTATION, FROM_BASE["transfer+"])


@dataclass(frozen=True)
class TableCell:
    """A number, and in small print its difference from the base and how many runs it has."""

    main: str = "–"
    small: str = ""
    runs: str = ""  # only where fewer runs are behind it than the study plans


@dataclass(frozen=True)
class HtmlTable:
    """A table: `heads` of all its columns; `rows` of a name and the cells after it."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[TableCell, ...]], ...]


def blocks(recorded: StudyResults, summary: Summary) -> list[tuple[str, list[HtmlTable]]]:
    """Return (levels in a line, tables): of the mean over targets where there are several, then of each target."""
    if not summary.rows:
        return []
    titles = {"Mean over tasks": summary} if len(summary.targets) > 1 else {}
    for target in summary.targets:
        alone = summarise(recorded.results, score=summary.score, target=target, facts=recorded.facts)
        titles[task_title(recorded, target)] = alone
    return [(f"{title}: {_levels(recorded, one)}", summary_tables(recorded, one)) for title, one in titles.items()]


def _levels(recorded: StudyResults, summary: Summary) -> str:
    digits, level = decimals(recorded.facts, summary.targets), mean_chance(recorded.facts, summary.targets)
    base = summary.base
    parts = ["base not finished" if base is None else f"base {per_cent(base.value, digits)}{half(base, digits)} %"]
    if summary.base_plus is not None:
        parts.append(f"base+ {per_cent(summary.base_plus.value, digits)} %")
    if level is not None:
        parts.append(f"chance {per_cent(level, digits)} %")
    return ", ".join(parts)


def summary_tables(recorded: StudyResults, summary: Summary) -> list[HtmlTable]:
    """Return top-1, then the effects at equal training and from the base, as far as the study has them."""
    digits = decimals(recorded.facts, summary.targets)
    planned = len(summary.targets) * len(summary.seeds)

    def runs(estimate: Estimate) -> str:
        return "" if estimate.runs == planned else f"{estimate.runs} of {planned} runs"

    def top1(row: Row, treatment: str) -> TableCell:
        mean, difference = row.top1.get(treatment), row.difference.get(treatment)
        if mean is None:
            return TableCell()
        return TableCell(
            per_cent(mean.value, digits), "" if difference is None else signed(difference, digits), runs(mean)
        )

    def cell(row: Row, effect: Effect) -> TableCell:
        estimate = row[effect]
        return TableCell() if estimate is None else TableCell(amount(effect, estimate, digits), "", runs(estimate))

    names, stages = summary.treatments, Stages.of(recorded.facts)
    rows = tuple((stages.label(row.n), tuple(top1(row, name) for name in names)) for row in summary.rows)
    tables = [HtmlTable("Top-1 against n", (stages.head, *names), rows)]
    for caption, effects in (
        ("Where the points go, at equal training", AT_EQUAL_TRAINING),
        (f"What the pretrained weights are worth; {NOT_COUNTED}", WORTHS),
        ("The paper's comparison, against the base", _FROM_BASE),
    ):
        if any(row[effect] for row in summary.rows for effect in effects):
            rows = tuple((stages.label(row.n), tuple(cell(row, effect) for effect in effects)) for row in summary.rows)
            tables.append(HtmlTable(caption, (stages.head, *map(_heading, effects)), rows))
    return tables


def _heading(effect: Effect) -> str:
    title = "" if effect.name == effect.left else f"{effect.title or effect.name}: "
    return title + networks(effect)
