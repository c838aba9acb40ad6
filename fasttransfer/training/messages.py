"""The messages of a cohort in training."""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.study.cells import Cell
from fasttransfer.study.records import Evaluation


@dataclass(frozen=True)
class Started:
    """A cohort of `cells` begins or resumes at `step` of `steps`."""

    cells: tuple[Cell, ...]
    step: int
    steps: int


@dataclass(frozen=True)
class Advanced:
    """A cohort of `cells` has trained up to `step` of `steps`."""

    cells: tuple[Cell, ...]
    step: int
    steps: int


@dataclass(frozen=True)
class Checked:
    """Validation checks of one cell, the latest last."""

    cell: Cell
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Ended:
    """A cell is "done" or "stuck" (its weights are on disk), "diverged", or "skipped" as its source was.

    `correct` packs which validation images its last check got right, see `fasttransfer.study.records.Result`.
    """

    cell: Cell
    state: str
    steps: int
    reason: str = ""
    correct: bytes | None = None


@dataclass(frozen=True)
class Noted:
    """A sentence about features or workers: to record if it `stays`, else about progress, which the next replaces."""

    text: str
    stays: bool = True


Message = Started | Advanced | Checked | Ended | Noted
