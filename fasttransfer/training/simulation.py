"""Simulate a study: what each job costs by measured times, and which worker waits for which base."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fasttransfer.study.cells import Cell
from fasttransfer.study.recipe import Recipe
from fasttransfer.training.job_times import MachineTimes
from fasttransfer.training.planning import TrainingJob

JobCost = dict[str, float]
"""One of `PARTS` -> the seconds spent on it."""

PARTS = ("training", "validation", "building", "saving")
CHECKPOINT_SECONDS = 30.0
"""Seconds from the start of a job to its first checkpoint, as in `grid.run`."""


def job_cost(recipe: Recipe, times: MachineTimes, job: TrainingJob, done: Mapping[Cell, int]) -> JobCost:
    """Return the seconds that one of several busy workers takes for `job`.

    Args:
        done: steps that a cell's checkpoint has behind it; a cell that is not named starts at 0.
    """
    timed = times.jobs[job.shape]
    begun = min(done.get(cell, 0) for cell in job.cells)
    checks = recipe.check_steps(job.steps)
    images = job.validated / len(checks) * sum(check > begun for check in checks)
    training = (job.steps - begun) * timed.step
    saving = len(job.cells) * 4 * job.network.weight_count(job.outputs) * times.write
    # As `Cohort.run` does it: not too often, and never for more than a twentieth of the time.
    checkpoint = job.checkpoint_bytes * times.write
    saving += training // max(CHECKPOINT_SECONDS, 20 * checkpoint) * checkpoint
    return {"training": training, "validation": images * timed.image, "building": timed.build, "saving": saving}


def simulate(
    jobs: Sequence[TrainingJob],
    costs: Mapping[TrainingJob, JobCost],
    workers: int,
    alone: float,
    ended: Collection[Cell],
) -> tuple[JobCost, JobCost]:
    """Return the wall seconds of the bases and of the copies, each by what they are spent on.

    Time in which several workers are busy counts in equal parts for each. Jobs are taken as
    `fasttransfer.training.workers` does: the first that has what it needs.

    Args:
        costs: seconds of each job beside others.
        alone: the share of its time that a job takes when no other worker is busy.
        ended: the cells that are trained already.
    """
    bases, copies = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    waiting, running, trained = list(jobs), dict[TrainingJob, float](), set(ended)
    while waiting or running:
        for job in list(waiting):
            if len(running) < workers and job.needs <= trained:
                waiting.remove(job)
                running[job] = sum(costs[job].values())
        if not running:
            break  # what waits for a base that will never end
        busy = (len(running) - 1) / (workers - 1) if workers > 1 else 1.0
        pace = alone + (1 - alone) * busy  # wall seconds per second of work
        until = min(running.values())
        share = until * pace / len(running)
        for job, rest in list(running.items()):
            spent, whole = copies if job.cells[0].n else bases, sum(costs[job].values())
            for what, seconds in costs[job].items():
                spent[what] += share * seconds / whole
            running[job] = rest - until
            if rest <= until:
                del running[job]
                trained |= set(job.cells)
    return bases, copies
