"""What is trained together: cells of one target and seed, cut into jobs that keep all workers busy and fit memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import format_bytes
from fasttransfer.networks.geometry import Geometry
from fasttransfer.study.cells import BASE, Cell, cohorts
from fasttransfer.study.recipe import Recipe
from fasttransfer.training import cost, memory_use


@dataclass(frozen=True)
class TargetSizes:
    """What all cells of one target are trained on, as far as costs depend on it.

    Attributes:
        geometry, outputs: sizes of their networks.
        batch: images per step; steps: of a whole training.
        validated: images of all validation checks together.
        precision: "fp32" or "bf16".
    """

    geometry: Geometry
    outputs: int
    batch: int
    steps: int
    validated: int
    precision: str


@dataclass(frozen=True)
class TrainingJob:
    """Cells that are trained together, of one target and seed.

    `dataclasses.replace(job, cells=...)` is the job of some of them: costs follow from the cells.
    """

    cells: tuple[Cell, ...]
    terms: TargetSizes

    @property
    def needs(self) -> frozenset[Cell]:
        """The bases that must have ended before."""
        return frozenset(c.needs for c in self.cells if c.needs is not None)

    @property
    def macs(self) -> float:
        """Multiply-adds of the whole training, validations included."""
        terms = self.terms
        training = cost.cohort_macs(terms.geometry, terms.outputs, self.cells)
        validation = cost.validation_macs(terms.geometry, terms.outputs, self.cells)
        return terms.steps * terms.batch * training + terms.validated * validation

    @property
    def bytes(self) -> int:
        """Memory that a worker takes at the most while it trains this, libraries included but those all share."""
        terms = self.terms
        sizes = (terms.geometry, terms.outputs, terms.batch, terms.precision)
        return memory_use.OWN + memory_use.cohort_bytes(*sizes, self.cells)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the checkpoints of all cells: weights and velocities of what they train."""
        terms = self.terms
        return sum(8 * cost.weight_count(terms.geometry, terms.outputs, cell.first_trained) for cell in self.cells)

    @property
    def shape(self) -> TrainingJob:
        """The same cells of seed 0 and target B: jobs of one shape cost the same."""
        return replace(self, cells=tuple(sorted(replace(cell, seed=0, target="B") for cell in self.cells)))


@dataclass(frozen=True)
class JobPlan:
    """`jobs`, how many `workers` train at the same time, and why, where memory decided on either (else "")."""

    jobs: tuple[TrainingJob, ...]
    workers: int
    waves: str

    @property
    def bytes(self) -> int:
        """Memory of all workers at the most."""
        return memory_use.SHARED + sum(sorted((job.bytes for job in self.jobs), reverse=True)[: self.workers])


def split_in_half(job: TrainingJob) -> tuple[TrainingJob, ...]:
    """`job` in two of about equal cost, the dearer first; a job of one cell is itself. It changes no result."""
    return tuple(sorted(_parts(job, 2), key=lambda half: -half.macs))


def plan_jobs(
    recipe: Recipe,
    cells: Sequence[Cell],
    classes: Mapping[str, Sequence[str]],
    train: Mapping[str, int],
    val: Mapping[str, int],
    workers: int,
    precision: str,
    free: int | None,
) -> JobPlan:
    """Cuts `cells` into jobs, dearest first within bases and copies.

    One cohort a target and seed shares most; where that leaves workers idle, cohorts are cut into parts of about
    equal cost. Where those that train at the same time would not fit into memory, they are cut further: each cohort
    trains in waves; where even single cells do not fit beside each other, fewer train at the same time. How they are
    cut changes no result.

    Args:
        classes: those of each task; train, val: how many images each task has.
        free: bytes that all workers may have, see `memory_use.free_memory`; None where nobody knows.

    Raises:
        InputError: a single cell does not fit.
    """
    groups = cohorts(cells)
    copies = sum(members[0].treatment != BASE for members in groups)
    parts = -(-2 * workers // copies) if workers > 1 and copies else 1
    whole = []
    for members in groups:
        task, is_copy = members[0].target, members[0].treatment != BASE
        steps = recipe.steps_for(train[task])
        validated = len(recipe.check_steps(steps)) * val[task]
        terms = TargetSizes(
            recipe.geometry, recipe.outputs_for(task, classes), recipe.batch, steps, validated, precision
        )
        whole.append((TrainingJob(members, terms), parts if is_copy else 1))
    jobs = [part for job, count in whole for part in _parts(job, count)]
    waves = ""
    if free is not None and jobs:
        together = _together(jobs, free, workers)
        room = _room(free, together)
        cut = [part for job, count in whole for part in _fitting(job, count, room)]
        if together < workers or len(cut) > len(jobs):
            waves = _told(jobs, cut, free, workers, together)
        jobs, workers = cut, together
    return JobPlan(tuple(sorted(jobs, key=lambda job: (bool(job.cells[0].n), -job.macs))), workers, waves)


def _room(free: int, workers: int) -> float:
    """Bytes for each of so many workers."""
    return (memory_use.SHARE * free - memory_use.SHARED) / workers


def _together(jobs: Sequence[TrainingJob], free: int, workers: int) -> int:
    """How many workers there may be for the largest of the single cells to fit beside each other."""
    largest = max((replace(job, cells=(cell,)) for job in jobs for cell in job.cells), key=lambda job: job.bytes)
    for count in range(workers, 0, -1):
        if largest.bytes <= _room(free, count):
            return count
    terms = largest.terms
    narrower = ", --precision bf16" if terms.precision == "fp32" else ""
    needed = (largest.bytes + memory_use.SHARED) / memory_use.SHARE
    raise InputError(
        f"one network ({terms.geometry.name}, {terms.precision}, batch {terms.batch}) needs {format_bytes(needed)} of "
        f"memory to train, {format_bytes(free)} are free: choose a smaller --batch{narrower} or end "
        "what else takes memory"
    )


def _fitting(job: TrainingJob, parts: int, room: float) -> list[TrainingJob]:
    """`job` in `parts` parts, or as many more as it takes for each to fit into `room`."""
    for count in range(min(parts, len(job.cells)), len(job.cells) + 1):
        cut = _parts(job, count)
        if all(part.bytes <= room for part in cut):
            break
    return cut


def _parts(job: TrainingJob, count: int) -> list[TrainingJob]:
    return [replace(job, cells=tuple(share)) for share in _shares(job.cells, job.terms, count)]


def _told(jobs: Sequence[TrainingJob], cut: Sequence[TrainingJob], free: int, workers: int, together: int) -> str:
    wanted = JobPlan(tuple(jobs), workers, "").bytes
    what = []
    if together < workers:
        what.append(f"{together} of {workers} workers train at the same time")
    if len(cut) > len(jobs):
        what.append(f"cohorts train in waves of at most {max(len(job.cells) for job in cut)} networks")
    return f"{' and '.join(what)}: {format_bytes(wanted)} would be needed, {format_bytes(free)} of memory are free"


def _shares(cells: Sequence[Cell], terms: TargetSizes, parts: int) -> list[list[Cell]]:
    """Deals cells to `parts` lists of about equal cost: dearest first, each to the list that has least."""
    costs = [cost.trained_macs(terms.geometry, terms.outputs, cell) for cell in cells]
    shares: list[list[Cell]] = [[] for _ in range(min(parts, len(cells)))]
    sums = [0] * len(shares)
    for price, cell in sorted(zip(costs, cells, strict=True), reverse=True):
        least = sums.index(min(sums))
        shares[least].append(cell)
        sums[least] += price
    return [sorted(share) for share in shares]
