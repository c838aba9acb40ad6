"""Which job is trained when, by whom, and what becomes of it when its worker is lost or memory is short.

Bases go first; the cells that copy from them follow as soon as the bases they need have ended. Whose workers they are
makes no difference here, and none of this changes a result: every cell goes on from its last checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fasttransfer.core.errors import InputError
from fasttransfer.study.cells import Cell
from fasttransfer.training.checkpoint import load_end
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.messages import Advanced, Ended, Message, Started
from fasttransfer.training.planning import JobPlan, TrainingJob, split_in_half
from fasttransfer.training.workers.worker_loop import OutOfMemory, WorkerFailed, WorkerFree, WorkerLost, WorkerMessage

STOPPING = (signal.SIGINT, signal.SIGTERM)  # asks for a clean stop
_LOST = {"diverged": "diverged", "stuck": "is stuck"}  # states of a base that leave nothing to copy, in words
RETRIES = 3
"""How often a job whose worker was lost is given to another one."""

_WAIT = 0.5  # seconds between looks at whether somebody wants a stop


class WorkerError(RuntimeError):
    """A worker failed: its stack trace."""


@dataclass(frozen=True)
class JobRetried:
    """A job goes on from its checkpoints: `text` says why and how.

    Of what it reported, `begun` and the `macs` since are no longer done, or will be reported again.
    """

    text: str
    begun: Started | None
    macs: float


class WorkerPool(Protocol):
    """Workers, wherever they are; each is known by a number."""

    @property
    def size(self) -> int:
        """How many can work at the same time."""
        ...

    def start_worker(self) -> None:
        """Starts one more worker, which says that it is free when it has come up."""
        ...

    def assign_job(self, worker: int, job: TrainingJob) -> None:
        """Has a free worker train `job`."""
        ...

    def on_message(self, seconds: float) -> Sequence[tuple[int, WorkerMessage]]:
        """What workers have said, each in its order; nothing where none has for `seconds`."""
        ...

    def stop(self) -> None:
        """Asks all to leave what they train in checkpoints."""
        ...

    def close(self) -> None:
        """Ends the workers, what they train included: their files are whole at any time."""
        ...


@dataclass
class _JobState:
    """What is left of a job: parts that are trained one after another, since they do not fit into memory together."""

    parts: list[TrainingJob]
    losses: int = 0
    begun: Started | None = None
    macs: float = 0.0

    def begin(self) -> TrainingJob:
        self.begun, self.macs = None, 0.0
        return self.parts[0]


def run_jobs(
    crew: WorkerPool,
    setting: StudyContext,
    division: JobPlan,
    on_message: Callable[[Message | JobRetried], None],
    *,
    ended: Callable[[Cell], str | None],
) -> bool:
    """Has `crew` do the jobs of `division`; False when interrupted, with every cell's progress in checkpoints.

    Args:
        hear: called with everything that cohorts report, and with what is done again, in this process.
        ended: a cell's state where it has ended, see `fasttransfer.study.records.Result`, else None.

    Raises:
        InputError: what a worker was refused, e.g. a full disk; memory is short for a single network; workers are lost
            again and again.
        WorkerError: a worker failed otherwise.
    """
    waiting = [_JobState([job]) for job in division.jobs]
    busy: dict[int, _JobState] = {}
    idle: list[int] = []
    starting = _JobState([])  # whose losses are those of workers without a job
    interrupts = _Interrupts()
    told = False
    try:
        for _ in range(min(crew.size, division.workers, len(waiting))):
            crew.start_worker()
        while waiting or busy:
            _drop_orphans(waiting, ended, on_message)
            if interrupts.asked and not told:
                crew.stop()
                told = True
            ready = None if told else next((t for t in waiting if all(map(ended, t.parts[0].needs))), None)
            if ready is None and not busy:
                break
            if ready is not None and idle:
                waiting.remove(ready)
                busy[idle[0]] = ready
                crew.assign_job(idle.pop(0), ready.begin())
                continue
            for worker, said in crew.on_message(_WAIT):
                if isinstance(said, WorkerFailed):
                    raise InputError(said.text) if said.spoken else WorkerError(said.text)
                if isinstance(said, WorkerFree | OutOfMemory | WorkerLost):
                    turn = busy.pop(worker, starting)
                    if isinstance(said, WorkerLost):
                        idle = [each for each in idle if each != worker]
                        if not told:
                            crew.start_worker()
                    else:
                        idle.append(worker)
                    if isinstance(said, WorkerFree):
                        turn.parts = turn.parts[1:]
                    else:
                        _retry(turn, said, setting, ended, on_message)
                    if turn.parts:
                        waiting.insert(0, turn)
                else:
                    turn = busy[worker]
                    if isinstance(said, Started):
                        turn.begun = said
                    elif isinstance(said, Advanced):
                        turn.macs += said.macs
                    on_message(said)
    finally:
        interrupts.restore()
    return all(ended(cell) for job in division.jobs for cell in job.cells)


def _retry(
    turn: _JobState,
    said: OutOfMemory | WorkerLost,
    setting: StudyContext,
    ended: Callable[[Cell], str | None],
    on_message: Callable[[Message | JobRetried], None],
) -> None:
    """Makes of `turn` what is left to do, in halves where memory was short, and tells.

    Raises:
        InputError: it would only happen again.
    """
    again = f"The same command goes on from {setting.folder}/checkpoints."
    turn.losses += isinstance(said, WorkerLost)
    names = _names(turn.parts[0].cells) if turn.parts else "without a job yet"
    if turn.losses > RETRIES and isinstance(said, WorkerLost):
        raise InputError(
            f"{names}: {turn.losses} workers were lost, the last one: {said.why}; see whether memory is short. {again}"
        )
    if not turn.parts:
        return
    job = turn.parts[0]
    for cell in job.cells:  # what a lost worker wrote, but did not live to tell
        if not ended(cell):
            for message in load_end(setting.folder, setting.study, cell) or ():
                on_message(message)
    left = tuple(cell for cell in job.cells if not ended(cell))
    parts: tuple[TrainingJob, ...] = (replace(job, cells=left),) if left else ()
    if isinstance(said, OutOfMemory) and len(job.cells) == 1:
        raise InputError(
            f"{names}: there is not enough memory for this network alone ({said.text}): free some, or use a machine "
            f"that has more. {again}"
        )
    if parts and (isinstance(said, OutOfMemory) or said.memory):
        parts = split_in_half(parts[0])
    how = f"goes on in {len(parts)} parts" if len(parts) > 1 else "goes on"
    if isinstance(said, OutOfMemory):
        text = f"{names}: not enough memory ({said.text}), {how} from checkpoints"
    else:
        text = f"{names}: worker lost ({said.why}), {how} from checkpoints, try {turn.losses} of {RETRIES}"
    on_message(JobRetried(text, turn.begun, turn.macs))
    turn.parts = [*parts, *turn.parts[1:]]


def _names(cells: Sequence[Cell]) -> str:
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f"{cells[0].label}{more}"


def _drop_orphans(
    waiting: list[_JobState], ended: Callable[[Cell], str | None], on_message: Callable[[Message], None]
) -> None:
    """Cells whose base diverged or is stuck have nothing to copy: they are skipped, and the rest of their job stays."""
    for turn in list(waiting):
        for i, job in reversed(list(enumerate(turn.parts))):
            lost = {
                c: f"its source {c.needs.name} {_LOST[state]}"
                for c in job.cells
                if c.needs is not None and (state := ended(c.needs)) in _LOST
            }
            if not lost:
                continue
            for cell, reason in lost.items():
                on_message(Ended(cell, "skipped", 0, reason))
            kept = tuple(c for c in job.cells if c not in lost)
            turn.parts[i : i + 1] = [replace(job, cells=kept)] if kept else []
        if not turn.parts:
            waiting.remove(turn)


class _Interrupts:
    """The first Ctrl-C or SIGTERM asks for a clean stop; a second one is an ordinary KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in STOPPING}

    def _handle(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(number, signal.default_int_handler)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
