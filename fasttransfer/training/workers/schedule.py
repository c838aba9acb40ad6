"""Decide which job is trained when, by whom, and what becomes of it when its worker is lost or memory is short.

Bases go first; the cells that copy from them follow as soon as the bases they need have ended. None of this changes a
result, whichever pool the workers are of: every cell goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fasttransfer.core.errors import InputError
from fasttransfer.core.interrupts import catch_signals
from fasttransfer.study.cells import Cell
from fasttransfer.training.checkpoint import load_end
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.messages import Ended, Message, Noted
from fasttransfer.training.planning import JobPlan, TrainingJob, split_in_half
from fasttransfer.training.workers.worker_loop import OutOfMemory, WorkerError, WorkerFree, WorkerLost, WorkerMessage

RETRIES = 3
"""How often a job whose worker was lost is given to another one."""

_NO_SOURCE = {"diverged": "diverged", "stuck": "is stuck"}  # states of a base that leave nothing to copy, in words
_WAIT = 0.5  # seconds between two looks at whether the user has interrupted


EndedState = Callable[[Cell], str | None]
"""Returns how a cell ended, see `fasttransfer.study.records.Result`; None where it has not."""


class WorkerPool(Protocol):
    """Workers, each known by a number."""

    @property
    def size(self) -> int:
        """The number of workers that can work at the same time."""

    def start_worker(self) -> None:
        """Start one more worker, which reports that it is free when it has come up."""

    def assign_job(self, worker: int, job: TrainingJob) -> None:
        """Have a free worker train `job`."""

    def receive(self, seconds: float) -> Sequence[tuple[int, WorkerMessage]]:
        """Return what workers have reported, in the order of each; waits for it for `seconds` at the most."""

    def stop(self) -> None:
        """Have all workers save checkpoints and end their jobs."""

    def close(self) -> None:
        """End the workers, whatever they are doing: their files are whole at any time."""


@dataclass
class _JobState:
    """The rest of a job: parts that are trained one after another, since they do not fit into memory together."""

    parts: list[TrainingJob]
    losses: int = 0


def run_jobs(
    pool: WorkerPool,
    setting: StudyContext,
    division: JobPlan,
    on_message: Callable[[Message], None],
    *,
    ended: EndedState,
) -> bool:
    """Have the workers of `pool` train the jobs of `division`.

    Args:
        on_message: called in this process with everything that cohorts report, and with jobs that are retried. It
            keeps what `ended` returns up to date.

    Returns:
        False when interrupted, with the progress of every cell in checkpoints.

    Raises:
        InputError: what a worker was refused, e.g. a full disk; memory is short for a single network; workers are lost
            again and again.
        WorkerError: a worker failed otherwise.
    """
    waiting = [_JobState([job]) for job in division.jobs]
    busy: dict[int, _JobState] = {}
    idle: list[int] = []
    starting = _JobState([])  # counts the losses of workers without a job
    is_stopping = False
    with catch_signals(interrupts_again=True) as interrupted:
        for _ in range(min(pool.size, division.workers, len(waiting))):
            pool.start_worker()
        while waiting or busy:
            _skip_orphans(waiting, ended, on_message)
            if interrupted.is_set() and not is_stopping:
                pool.stop()
                is_stopping = True
            ready = None if is_stopping else next((j for j in waiting if all(map(ended, j.parts[0].needs))), None)
            if ready is None and not busy:
                break
            if ready is not None and idle:
                waiting.remove(ready)
                busy[idle[0]] = ready
                pool.assign_job(idle.pop(0), ready.parts[0])
                continue
            for worker, message in pool.receive(_WAIT):
                match message:
                    case InputError() | WorkerError():
                        raise message
                    case WorkerFree() | OutOfMemory() | WorkerLost():
                        job = busy.pop(worker, starting)
                        if isinstance(message, WorkerFree):
                            job.parts = job.parts[1:]
                        else:
                            _retry(job, message, setting, ended, on_message)
                        if not isinstance(message, WorkerLost):
                            idle.append(worker)
                        else:
                            idle = [other for other in idle if other != worker]
                            if not is_stopping:
                                pool.start_worker()
                        if job.parts:
                            waiting.insert(0, job)
                    case _:
                        on_message(message)
    return all(ended(cell) for job in division.jobs for cell in job.cells)


def _retry(
    state: _JobState,
    failure: OutOfMemory | WorkerLost,
    setting: StudyContext,
    ended: EndedState,
    on_message: Callable[[Message], None],
) -> None:
    """Replace the failed part of a job by what is left to do, in halves where memory was short, and report it.

    Raises:
        InputError: it would only happen again.
    """
    resume = f"The same command goes on from {setting.folder}/checkpoints."
    state.losses += isinstance(failure, WorkerLost)
    names = _names(state.parts[0].cells) if state.parts else "without a job yet"
    if state.losses > RETRIES and isinstance(failure, WorkerLost):
        raise InputError(
            f"{names}: {state.losses} workers were lost, the last one: {failure.why}; see whether memory is short. "
            f"{resume}"
        )
    if not state.parts:
        return
    job = state.parts[0]
    for cell in job.cells:  # a lost worker may have written a network and not reported it
        if not ended(cell):
            for message in load_end(setting.folder, setting.study, cell) or ():
                on_message(message)
    if isinstance(failure, OutOfMemory) and len(job.cells) == 1:
        raise InputError(
            f"{names}: there is not enough memory for this network alone ({failure.text}): free some, or use a machine "
            f"that has more. {resume}"
        )
    left = tuple(cell for cell in job.cells if not ended(cell))
    parts: tuple[TrainingJob, ...] = (replace(job, cells=left),) if left else ()
    if parts and (isinstance(failure, OutOfMemory) or failure.memory):
        parts = split_in_half(parts[0])
    how = f"goes on in {len(parts)} parts" if len(parts) > 1 else "goes on"
    if isinstance(failure, OutOfMemory):
        text = f"{names}: not enough memory ({failure.text}), {how} from checkpoints"
    else:
        text = f"{names}: worker lost ({failure.why}), {how} from checkpoints, try {state.losses} of {RETRIES}"
    on_message(Noted(text))
    state.parts = [*parts, *state.parts[1:]]


def _names(cells: Sequence[Cell]) -> str:
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f"{cells[0].label}{more}"


def _skip_orphans(waiting: list[_JobState], ended: EndedState, on_message: Callable[[Message], None]) -> None:
    """Skip the cells whose base diverged or is stuck, for they have nothing to copy; the rest of their job stays."""
    for state in list(waiting):
        parts = []
        for job in state.parts:
            trainable = []
            for cell in job.cells:
                if cell.needs is not None and (how := _NO_SOURCE.get(ended(cell.needs) or "")):
                    on_message(Ended(cell, "skipped", 0, f"its source {cell.needs.name} {how}"))
                else:
                    trainable.append(cell)
            if trainable:
                parts.append(replace(job, cells=tuple(trainable)))
        state.parts = parts
        if not parts:
            waiting.remove(state)
