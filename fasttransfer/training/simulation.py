"""When jobs end that workers take one after another: what each costs from measured rates, and who waits for whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fasttransfer.study.cells import Cell, frozen_by_source
from fasttransfer.study.recipe import Recipe
from fasttransfer.training.planning import TrainingJob
from fasttransfer.training.step_times import StepTimes

Spent = dict[str, float]
"""What time is spent on, see `PARTS` -> seconds."""

PARTS = ("training", "validation", "building", "saving")


def spent(
    recipe: Recipe, rates: StepTimes, job: TrainingJob, done: Mapping[Cell, int], checkpoint_seconds: float = 30.0
) -> Spent:
    """Seconds that one of several busy workers takes for `job`.

    Args:
        done: steps that a cell's checkpoint has behind it; a cell that is not named starts at 0.
    """
    terms = job.terms
    parameters = [math.prod(shape) + shape[0] for shape in terms.geometry.weight_shapes(terms.outputs)]
    checks = recipe.check_steps(terms.steps)
    left = {cell: terms.steps - done.get(cell, 0) for cell in job.cells}
    checked = {cell: sum(check > done.get(cell, 0) for check in checks) for cell in job.cells}
    batches = terms.validated / len(checks) / terms.batch  # a check
    training = max(left.values()) * rates.feed
    validation = max(checked.values()) * batches * rates.validation
    for cell in job.cells:
        start = cell.first_trained
        training += left[cell] * rates.step[start]
        validation += checked[cell] * batches * sum(rates.forward[start:])
    for cells in frozen_by_source(job.cells).values():
        prefix = sum(rates.forward[: max(cell.n for cell in cells)])
        training += max(left[cell] for cell in cells) * prefix
        validation += max(checked[cell] for cell in cells) * batches * prefix
    drawn = sum(parameters[min(cell.n for cell in job.cells) :])
    for source in {cell.source for cell in job.cells if cell.source is not None and cell.needs is None}:
        drawn += sum(parameters[: max(cell.n for cell in job.cells if cell.source == source)])
    building = drawn * rates.draw + len(job.cells) * rates.build
    saving = len(job.cells) * 4 * sum(parameters) * rates.save
    # As `Cohort.run` does it: not too often, and never for more than a twentieth of the time.
    checkpoint = sum(8 * sum(parameters[cell.first_trained :]) for cell in job.cells) * rates.save
    saving += training // max(checkpoint_seconds, 20 * checkpoint) * checkpoint
    return {"training": training, "validation": validation, "building": building, "saving": saving}


def simulate(
    jobs: Sequence[TrainingJob], costs: Mapping[TrainingJob, Spent], workers: int, alone: float, ended: set[Cell]
) -> tuple[Spent, Spent]:
    """Wall seconds of the bases and of the copies, each by what they were spent on.

    Time in which several workers are busy is shared out among them in equal parts. Jobs are taken as
    `fasttransfer.training.workers` does: the first that has what it needs.

    Args:
        costs: seconds of each job beside others.
        alone: the share of its time that a job takes when no other worker is busy.
        ended: the cells that are trained already.
    """
    bases: Spent = {}
    copies: Spent = {}
    waiting, running, ended = list(jobs), dict[TrainingJob, float](), set(ended)
    while waiting or running:
        for job in list(waiting):
            if len(running) < workers and job.needs <= ended:
                waiting.remove(job)
                running[job] = sum(costs[job].values())
        if not running:
            break  # what waits for a base that will never end
        busy = (len(running) - 1) / (workers - 1) if workers > 1 else 1.0
        pace = alone + (1 - alone) * busy  # wall seconds of a second of work
        until = min(running.values())
        share = until * pace / len(running)
        for job, rest in list(running.items()):
            into, whole = copies if job.cells[0].n else bases, sum(costs[job].values())
            for what, seconds in costs[job].items():
                into[what] = into.get(what, 0.0) + share * seconds / whole
            running[job] = rest - until
            if rest <= until:
                del running[job]
                ended |= set(job.cells)
    return bases, copies
