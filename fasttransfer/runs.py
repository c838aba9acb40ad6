"""What a command may be given as RUN: the folder of a study, or a part of the paper."""

from __future__ import annotations

from pathlib import Path

from fasttransfer import paper, records
from fasttransfer.records import Recorded

_PAPER = "paper"


def read(run: str) -> Recorded:
    """The study in folder `run`, or published results: paper:random, paper:natural-manmade, paper:full, paper:reduced.

    Raises:
        InputError: no such study, no such part of the paper.
    """
    name, _, part = run.partition(":")
    if name == _PAPER and (part or not Path(run).exists()):
        return paper.recorded(part)  # type: ignore[arg-type]  # it says which parts there are
    return records.read(Path(run))
