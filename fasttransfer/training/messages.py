"""What a cohort in training tells whoever listens."""

from __future__ import annotations

from dataclasses import dataclass

from fasttransfer.study.cells import Cell
from fasttransfer.study.records import Evaluation


@dataclass(frozen=True)
class Started:
    """A cohort begins or resumes: its shape, for the progress display."""

    cells: tuple[Cell, ...]
    step: int
    steps: int


@dataclass(frozen=True)
class Advanced:
    """`macs` multiply-adds have been done since the last such message; the cohort is at `step`."""

    step: int
    steps: int
    macs: float


@dataclass(frozen=True)
class Checked:
    """Validation checks of one cell, the latest last."""

    cell: Cell
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Ended:
    """A cell is "done" or "stuck" (its weights are on disk), "diverged", or "skipped" with what it copies from.

    `correct` says which validation images its last check got right, see `fasttransfer.study.records.Result`.
    """

    cell: Cell
    state: str
    steps: int
    reason: str = ""
    correct: bytes | None = None


@dataclass(frozen=True)
class Noted:
    """A sentence about features: `stays` if it should be read and recorded, else it says how far the work is."""

    text: str
    stays: bool = True


Message = Started | Advanced | Checked | Ended | Noted
