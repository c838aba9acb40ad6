"""What frozen transfer costs and the two pieces it consists of: at equal training where the study has the networks.

At equal training the fine-tuned selffer is the reference, which has had the base's schedule and one more, as the frozen
networks have: selffer+ - transfer = freezing (selffer+ - selffer) + specificity (selffer - transfer). A study without
fine-tuned selffers beside its frozen networks, as the paper's random halves, has the paper's pieces only:
base - transfer = co-adaptation (base - selffer) + specificity.
"""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.report.analysis import Estimate, Row, Summary, summarise
from fasttransfer.study.records import StudyResults


@dataclass(frozen=True)
class Piece:
    """One n: the `whole` cost of frozen transfer, its `first` part and `specificity`; None where not all were run."""

    n: int
    whole: Estimate
    first: Estimate | None
    specificity: Estimate | None


@dataclass(frozen=True)
class Pieces:
    """The costs for each n that has one; `is_equal`: at equal training, else the paper's, from the base."""

    is_equal: bool
    rows: tuple[Piece, ...]

    @property
    def first_name(self) -> str:
        """What the first piece is called."""
        return "freezing" if self.is_equal else "co-adaptation"

    @property
    def split(self) -> tuple[Piece, ...]:
        """Those that can be taken apart."""
        return tuple(row for row in self.rows if row.first is not None and row.specificity is not None)


def pieces(recorded: StudyResults, summary: Summary) -> Pieces:
    """The cost of frozen transfer and its pieces: at equal training unless most runs lack a fine-tuned selffer.

    `summary` is one of `recorded`, of all its targets or of one.
    """
    equal = [row for row in summary.rows if _is_equal(row)]
    if equal:
        found = [Piece(row.n, row.frozen_cost, row.freezing, row.specificity) for row in equal if row.frozen_cost]
        return Pieces(True, tuple(found))
    # Where a few runs do have one, the specificity of the summary is over those alone.
    results = [r for r in recorded.results if r.treatment != "selffer+" and r.target in summary.targets]
    rows = summarise(results, score=summary.score, facts=recorded.facts).rows
    return Pieces(False, tuple(Piece(row.n, row.lost, row.co_adaptation, row.specificity) for row in rows if row.lost))


def _is_equal(row: Row) -> bool:
    transfer = row.top1.get("transfer")
    return row.frozen_cost is not None and transfer is not None and 2 * row.frozen_cost.runs >= transfer.runs
