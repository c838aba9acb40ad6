"""`fasttransfer advise`: say up to which stage to copy a network, and whether to freeze what is copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.text import Text

from fasttransfer.core.errors import InputError
from fasttransfer.study import paper
from fasttransfer.study.records import Score


@dataclass(frozen=True)
class Advise:
    """Say up to which stage to copy a network for a task, whether to freeze what is copied, and what freezing saves.

    The best cut and treatment with its interval, and the cheapest that cannot be told from it, among training from
    scratch and the study's networks with first stages of the other task or of pretrained weights.

    For example:

        fasttransfer advise runs/builtin-natural-manmade --target B
    """

    study: Annotated[str, tyro.conf.Positional]
    """Folder of the study, the --out of grid, or a part of the paper, as paper:random."""
    target: Literal["A", "B"] | None = None
    """The task to advise on; by default each that has such networks."""
    score: Score = "last"
    """last (the last validation check) or best10 (mean of the ten best, as the paper plots)."""

    def run(self, console: Console) -> int:
        from fasttransfer.report.advice import advice_table
        from fasttransfer.report.analysis.advice import advise
        from fasttransfer.report.analysis.summary import targets_of

        recorded = paper.read_study_or_paper(self.study)
        if self.target:
            console.print(advice_table(recorded, advise(recorded, self.target, self.score)))
            return 0
        tables, errors = [], []
        for target in targets_of(recorded.results):
            try:
                tables.append(advice_table(recorded, advise(recorded, target, self.score)))
            except InputError as error:  # one task may be ready before the other
                errors.append(error)
        if not tables:
            raise errors[0] if errors else InputError(f"{self.study}: the study has no networks yet")
        console.print(*tables, *(Text(str(error)) for error in errors), sep="\n")
        return 0
