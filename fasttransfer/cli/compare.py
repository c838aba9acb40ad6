"""`fasttransfer compare`: show studies side by side."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from fasttransfer.cli.console import printer
from fasttransfer.study import paper
from fasttransfer.study.records import Score


@dataclass(frozen=True)
class Compare:
    """Show studies side by side: paired differences for every n, and how far they are from the first study's.

    Studies of networks with different stages are listed apart, because n of one is not n of another. Bases are shown
    against the number of training images per class where that differs. Studies that differ in their random split only
    are joined into one whose interval is over splits.

    For example:

        fasttransfer compare paper:random paper:natural-manmade --score best10
    """

    studies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of studies, or parts of the paper: paper:random, paper:natural-manmade, paper:full, paper:reduced."""
    score: Score = "last"
    """last (the last validation check) or best10 (mean of the ten best, as the paper plots)."""
    out: Path | None = None
    """Write a page with figures into this folder as well."""

    def run(self, console: Console) -> int:
        from fasttransfer.report import write_comparison
        from fasttransfer.report.analysis.comparison import compare
        from fasttransfer.report.table import comparison_table

        comparison = compare([paper.read_study_or_paper(study) for study in self.studies], self.score)
        console.print(comparison_table(comparison))
        if self.out is not None:
            words = ["fasttransfer", "compare", *self.studies, "--score", self.score, "--out", str(self.out)]
            index = write_comparison(comparison, self.out, command=shlex.join(words))
            printer(console)(f"report: {index}")
        return 0
