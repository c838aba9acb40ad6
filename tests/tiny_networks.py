"""Networks with given scores, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fasttransfer.study.cells import Cell
from fasttransfer.study.records import Evaluation, Result, StudyResults


def net(treatment: str, top1: float, *, target: str = "B", n: int = 3, seed: int = 0, state: str = "done") -> Result:
    """One network with a single check."""
    cell = Cell(seed, target, treatment, 0 if treatment == "base" else n)
    checks = () if state == "planned" else (Evaluation(100, 1.0, 1.0, top1),)
    name, source = cell.name, cell.source
    return Result(name, treatment, target, source, cell.n, seed, state, 100, checks)


def study_of(
    results: Iterable[Result], *, name: str = "x", facts: dict[str, Any] | None = None, **study: Any
) -> StudyResults:
    """A study of 16 classes and 5,000 validation images per task that found `results`."""
    about = {"classes": {task: ["c"] * 16 for task in ("A", "B")}, "val_pictures": {"A": 5000, "B": 5000}}
    return StudyResults(Path("runs") / name, study, {**about, **(facts or {})}, tuple(results), {}, ())
