"""The cost of frozen transfer and its two parts: at equal training where the study has the networks.

At equal training the fine-tuned selffer is the reference, which has had the base's schedule and one more, as the frozen
networks have: selffer+ - transfer = freezing (selffer+ - selffer) + specificity (selffer - transfer). A study without
fine-tuned selffers beside its frozen networks, as the paper's random halves, has the paper's parts only:
base - transfer = co-adaptation (base - selffer) + specificity.
"""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.report.analysis.effects import CO_ADAPTATION, FREEZING, FROZEN_COST, LOST, SPECIFICITY, Effect
from fasttransfer.report.analysis.summary import Row, Summary, summarise
from fasttransfer.study.records import StudyResults


@dataclass(frozen=True)
class Decomposition:
    """The rows that have the `whole` cost of frozen transfer, which is the sum of `first` and SPECIFICITY."""

    whole: Effect
    first: Effect
    rows: tuple[Row, ...]

    @property
    def is_equal(self) -> bool:
        """Whether it is at equal training; else it is the paper's, from the base."""
        return not self.whole.is_from_base

    @property
    def complete(self) -> tuple[Row, ...]:
        """The rows that have both parts as well."""
        return tuple(row for row in self.rows if {self.first, SPECIFICITY} <= row.effects.keys())


def decompose(recorded: StudyResults, summary: Summary) -> Decomposition:
    """Return the cost of frozen transfer: at equal training unless most runs lack a fine-tuned selffer.

    `summary` is one of `recorded`, of all its targets or of one.
    """
    if equal := tuple(row for row in summary.rows if _is_equal(row)):
        return Decomposition(FROZEN_COST, FREEZING, equal)
    # Where a few runs do have one, the specificity of the summary is over those alone.
    results = [r for r in recorded.results if r.treatment != "selffer+" and r.target in summary.targets]
    rows = summarise(results, score=summary.score, facts=recorded.facts).rows
    return Decomposition(LOST, CO_ADAPTATION, tuple(row for row in rows if row[LOST]))


def _is_equal(row: Row) -> bool:
    transfer, cost = row.top1.get("transfer"), row[FROZEN_COST]
    return cost is not None and transfer is not None and 2 * cost.runs >= transfer.runs
