"""`fasttransfer report`: write the report of a study again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from fasttransfer.cli.console import printer
from fasttransfer.core.errors import InputError
from fasttransfer.study.records import Score


@dataclass(frozen=True)
class Report:
    """Write the report of a study again and print its table; works while the study is still training.

    With --paper the published results of Yosinski et al. 2014 are laid behind the study's differences from the base,
    if its network has the paper's stages. Without a study, --paper draws the paper's own figures from those results
    alone.

    For example:

        fasttransfer report runs/builtin-natural-manmade --paper
    """

    study: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the study, the --out of grid."""
    paper: bool = False
    """Lay the paper's curves behind the study's, if the networks have the same stages; without a study, draw the
    paper's."""
    score: Score | None = None
    """last (the last validation check; the default) or best10 (mean of the ten best, as the paper plots; the default of
    --paper without a study)."""
    out: Path | None = None
    """Where --paper without a study writes; by default runs/paper."""

    def run(self, console: Console) -> int:
        from fasttransfer.report import table, write_paper, write_report
        from fasttransfer.report.stages import NO_OVERLAY, Stages
        from fasttransfer.study import paper, records

        if self.study is None:
            if not self.paper:
                raise InputError("report: name the folder of a study, or --paper for the published results alone")
            score: Score = self.score or "best10"
            recorded = paper.load_results("random")
            write = partial(write_paper, self.out or Path("runs") / "paper", score=score)
        else:
            if self.out is not None:
                raise InputError(f"--out goes with --paper alone: the report of {self.study} lies in its folder")
            score = self.score or "last"
            recorded = records.read_results(self.study)
            overlay = paper.matching_part(recorded) if self.paper else None
            write = partial(write_report, recorded, self.study, score=score, overlay=overlay)
            if overlay is not None and not Stages.of(recorded.facts).are_papers:
                printer(console)(NO_OVERLAY)
        console.print(table(recorded, score=score))
        printer(console)(f"report: {write()}")
        return 0
