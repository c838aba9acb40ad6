"""Cut cells of one target and seed into jobs that keep all workers busy and fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import format_bytes
from fasttransfer.networks.architecture import Architecture
from fasttransfer.study.cells import BASE, Cell, cohorts
from fasttransfer.study.recipe import Recipe
from fasttransfer.training import cost, memory_use


@dataclass(frozen=True)
class TrainingJob:
    """Cells of one target and seed that are trained together, and the sizes that their cost depends on.

    `dataclasses.replace(job, cells=...)` is the job of some of them: costs follow from the cells.

    Attributes:
        network, outputs: what is trained, and the width of its last layer.
        batch: images per step; steps: of a whole training.
        validated: images of all validation checks together.
        precision: "fp32" or "bf16".
        moments: values that the optimiser keeps per weight.
    """

    cells: tuple[Cell, ...]
    network: Architecture
    outputs: int
    batch: int
    steps: int
    validated: int
    precision: str
    moments: int = 1

    @property
    def needs(self) -> frozenset[Cell]:
        """The bases that must have ended before it starts."""
        return frozenset(c.needs for c in self.cells if c.needs is not None)

    @property
    def macs(self) -> float:
        """Multiply-adds of the whole training, validations included."""
        training = cost.cohort_macs(self.network, self.outputs, self.cells)
        validation = cost.validation_macs(self.network, self.outputs, self.cells)
        return self.steps * self.batch * training + self.validated * validation

    @property
    def bytes(self) -> int:
        """Memory of a worker at its peak, but for the libraries that all workers share."""
        sizes = (self.network, self.outputs, self.batch, self.precision)
        return memory_use.OWN + memory_use.cohort_bytes(*sizes, self.cells, self.moments)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the checkpoints of all cells: weights and the optimiser's moments of what they train."""
        return sum(
            4 * (1 + self.moments) * self.network.weight_count(self.outputs, cell.first_trained) for cell in self.cells
        )

    @property
    def shape(self) -> TrainingJob:
        """The same cells of seed 0 and target B: jobs of one shape cost the same."""
        return replace(self, cells=tuple(sorted(replace(cell, seed=0, target="B") for cell in self.cells)))


@dataclass(frozen=True)
class JobPlan:
    """The jobs of a study, and how many workers train at the same time.

    `waves` says in words how short memory changed either, "" where it did not.
    """

    jobs: tuple[TrainingJob, ...]
    workers: int
    waves: str

    @property
    def bytes(self) -> int:
        """Memory of all workers at their peak."""
        return memory_use.SHARED + sum(sorted((job.bytes for job in self.jobs), reverse=True)[: self.workers])


def split_in_half(job: TrainingJob) -> tuple[TrainingJob, ...]:
    """Cut `job` in two of about equal cost, the larger first; a job of one cell stays whole. It changes no result."""
    return tuple(sorted(_cut(job, 2), key=lambda half: -half.macs))


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
    """Cut `cells` into jobs, the largest first within bases and copies.

    One cohort per target and seed shares most; where that leaves workers idle, cohorts are cut into parts of about
    equal cost. Where those that train at the same time would not fit into memory, they are cut further: each cohort
    trains in waves; where even single cells do not fit beside each other, fewer train at the same time. None of this
    changes a result.

    Args:
        classes: task -> its classes; train, val: task -> number of images.
        free: bytes that all workers may have, see `memory_use.free_memory`; None where the system does not say.

    Raises:
        InputError: a single cell does not fit.
    """
    groups = cohorts(cells)
    copies = sum(group[0].treatment != BASE for group in groups)
    parts = -(-2 * workers // copies) if workers > 1 and copies else 1
    whole = []
    for group in groups:
        task = group[0].target
        steps = recipe.steps_for(train[task])
        validated = len(recipe.check_steps(steps)) * val[task]
        outputs = recipe.outputs_for(task, classes)
        job = TrainingJob(group, recipe.network, outputs, recipe.batch, steps, validated, precision, recipe.moments)
        whole.append((job, 1 if group[0].treatment == BASE else parts))
    jobs = [part for job, count in whole for part in _cut(job, count)]
    waves = ""
    if free is not None and jobs:
        fitting = _count_fitting(jobs, free, workers)
        room = _memory_each(free, fitting)
        fine = [part for job, count in whole for part in _cut_to_fit(job, count, room)]
        changes = []
        if fitting < workers:
            changes.append(f"{fitting} of {workers} workers train at the same time")
        if len(fine) > len(jobs):
            changes.append(f"cohorts train in waves of at most {max(len(job.cells) for job in fine)} networks")
        if changes:
            wanted = format_bytes(JobPlan(tuple(jobs), workers, "").bytes)
            waves = f"{' and '.join(changes)}: {wanted} would be needed, {format_bytes(free)} of memory are free"
        jobs, workers = fine, fitting
    return JobPlan(tuple(sorted(jobs, key=lambda job: (bool(job.cells[0].n), -job.macs))), workers, waves)


def _memory_each(free: int, workers: int) -> float:
    """Return the bytes that each of the workers may have."""
    return (memory_use.SHARE * free - memory_use.SHARED) / workers


def _count_fitting(jobs: Sequence[TrainingJob], free: int, workers: int) -> int:
    """Return how many workers can each train the largest single cell at the same time.

    Raises:
        InputError: none.
    """
    largest = max((replace(job, cells=(cell,)) for job in jobs for cell in job.cells), key=lambda job: job.bytes)
    for count in range(workers, 0, -1):
        if largest.bytes <= _memory_each(free, count):
            return count
    narrower = ", --precision bf16" if largest.precision == "fp32" else ""
    needed = (largest.bytes + memory_use.SHARED) / memory_use.SHARE
    raise InputError(
        f"one network ({largest.network.name}, {largest.precision}, batch {largest.batch}) needs "
        f"{format_bytes(needed)} of memory to train, {format_bytes(free)} are free: choose a smaller "
        f"--batch{narrower} or end what else takes memory"
    )


def _cut_to_fit(job: TrainingJob, parts: int, room: float) -> list[TrainingJob]:
    """Cut `job` into `parts` parts, or as many more as it takes for each to fit into `room` bytes."""
    for count in range(min(parts, len(job.cells)), len(job.cells) + 1):
        cut = _cut(job, count)
        if all(part.bytes <= room for part in cut):
            break
    return cut


def _cut(job: TrainingJob, parts: int) -> list[TrainingJob]:
    """Deal the cells of `job` to `parts` jobs of about equal cost: the dearest first, each to the cheapest job."""
    costs = [cost.trained_macs(job.network, job.outputs, cell) for cell in job.cells]
    shares: list[list[Cell]] = [[] for _ in range(min(parts, len(job.cells)))]
    sums = [0] * len(shares)
    for macs, cell in sorted(zip(costs, job.cells, strict=True), reverse=True):
        least = sums.index(min(sums))
        shares[least].append(cell)
        sums[least] += macs
    return [replace(job, cells=tuple(sorted(share))) for share in shares]
