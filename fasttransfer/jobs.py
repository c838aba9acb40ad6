"""What is trained together: cells of one target and seed, cut into jobs that keep every worker busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fasttransfer import cost
from fasttransfer.cells import Cell
from fasttransfer.study import Recipe


@dataclass(frozen=True)
class Job:
    """Cells that are trained together; `needs` are the bases that must have ended before."""

    cells: tuple[Cell, ...]
    macs: float

    @property
    def needs(self) -> frozenset[Cell]:
        return frozenset(c.needs for c in self.cells if c.needs is not None)


def plan_jobs(
    recipe: Recipe,
    cells: Sequence[Cell],
    classes: Mapping[str, Sequence[str]],
    train: Mapping[str, int],
    val: Mapping[str, int],
    workers: int,
) -> list[Job]:
    """Cuts `cells` into jobs, dearest first within bases and copies.

    One cohort a target and seed shares most; where that leaves workers idle, cohorts are cut into parts of about
    equal cost. How they are cut changes no result.

    Args:
        classes: those of each task; train, val: how many pictures each task has.
    """
    cohorts: dict[tuple[bool, int, str], list[Cell]] = {}
    for cell in cells:
        cohorts.setdefault((cell.treatment != "base", cell.seed, cell.target), []).append(cell)
    copies = sum(is_copy for is_copy, _, _ in cohorts)
    parts = -(-2 * workers // copies) if workers > 1 and copies else 1
    jobs = []
    for (is_copy, _, task), members in cohorts.items():
        geometry, outputs = recipe.geometry, recipe.outputs_for(task, classes)
        steps = recipe.steps_for(train[task])
        trained, validated = steps * recipe.batch, len(recipe.check_steps(steps)) * val[task]
        costs = [cost.trained_macs(geometry, outputs, cell) for cell in members]
        for share in _shares(members, costs, parts if is_copy else 1):
            training = trained * cost.cohort_macs(geometry, outputs, share)
            validation = validated * cost.validation_macs(geometry, outputs, share)
            jobs.append(Job(tuple(share), training + validation))
    return sorted(jobs, key=lambda job: (bool(job.cells[0].n), -job.macs))


def _shares(cells: Sequence[Cell], costs: Sequence[int], parts: int) -> list[list[Cell]]:
    """Deals cells to `parts` lists of about equal cost: dearest first, each to the list that has least."""
    shares: list[list[Cell]] = [[] for _ in range(min(parts, len(cells)))]
    sums = [0] * len(shares)
    for price, cell in sorted(zip(costs, cells, strict=True), reverse=True):
        least = sums.index(min(sums))
        shares[least].append(cell)
        sums[least] += price
    return [sorted(share) for share in shares]
