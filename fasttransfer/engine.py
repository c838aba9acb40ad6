"""Runs jobs in worker processes: which start when, what they report, how they are stopped.

Bases go first; the cells that copy from them follow as soon as the bases
they need have ended. The driver (this process) alone writes records; workers write weights and checkpoints.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import torch

from fasttransfer import machine
from fasttransfer.assembly import Setting, build_cohort
from fasttransfer.cells import Cell
from fasttransfer.cohort import Ended, Message
from fasttransfer.errors import InputError
from fasttransfer.jobs import Job

_STOPPING = (signal.SIGINT, signal.SIGTERM)  # asks for a clean stop


class WorkerError(RuntimeError):
    """A worker process failed: its stack trace, or how it ended."""


def run_jobs(
    setting: Setting,
    jobs: Sequence[Job],
    workers: int,
    hear: Callable[[Message], None],
    *,
    ended: Callable[[Cell], str | None],
) -> bool:
    """Runs `jobs` on `workers` processes; False when interrupted, with every cell's progress in checkpoints.

    Args:
        hear: called with everything that cohorts report, in this process.
        ended: a cell's state where it has ended ("done", "diverged"), else None.

    Raises:
        InputError: what a worker was refused, e.g. a full disk.
        WorkerError: a worker failed otherwise.
    """
    context = mp.get_context("spawn")
    stop = context.Event()
    waiting = list(jobs)
    idle: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    count = min(workers, len(waiting))
    interrupted = _Interrupts(stop.set)
    try:
        idle = [_Worker(context, setting, index, stop) for index in range(count)]
        while waiting or busy:
            _drop_orphans(waiting, ended, hear)
            while idle and not stop.is_set():
                ready = next((j for j in waiting if all(ended(base) for base in j.needs)), None)
                if ready is None:
                    break
                waiting.remove(ready)
                worker = idle.pop()
                worker.pipe.send(ready)
                busy[worker.pipe] = worker
            if not busy:
                break
            for pipe in wait(list(busy), timeout=1.0):
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                try:
                    heard = pipe.recv()
                except (EOFError, ConnectionResetError):  # the latter where it had not read its job yet
                    worker.process.join()
                    raise WorkerError(f"a worker ended with exit code {worker.process.exitcode}") from None
                if isinstance(heard, _Failed):
                    raise InputError(heard.text) if heard.spoken else WorkerError(heard.text)
                if isinstance(heard, _Free):
                    idle.append(busy.pop(pipe))
                else:
                    hear(heard)
    finally:
        for worker in (*idle, *busy.values()):
            worker.end()
        interrupted.restore()
    return not stop.is_set()


def _drop_orphans(waiting: list[Job], ended: Callable[[Cell], str | None], hear: Callable[[Message], None]) -> None:
    """Cells whose base diverged cannot be trained: they are reported so, and the rest of their job stays."""
    for job in list(waiting):
        lost = [c for c in job.cells if c.needs is not None and ended(c.needs) == "diverged"]
        if not lost:
            continue
        for cell in lost:
            assert cell.needs is not None
            hear(Ended(cell, "diverged", 0, f"its source {cell.needs.name} diverged"))
        kept = tuple(c for c in job.cells if c not in lost)
        waiting[waiting.index(job) : waiting.index(job) + 1] = [Job(kept, job.macs)] if kept else []


class _Interrupts:
    """The first Ctrl-C or SIGTERM asks for a clean stop; a second one is an ordinary KeyboardInterrupt."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in _STOPPING}

    def _handle(self, number: int, frame: object) -> None:
        self._ask()
        signal.signal(number, signal.default_int_handler)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# -- the worker's side ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Free:
    """A worker has ended its job, or left it in checkpoints."""


@dataclass(frozen=True)
class _Failed:
    """What went wrong in a worker: a sentence for the user (`spoken`), or a stack trace."""

    text: str
    spoken: bool


class _Worker:
    """The driver's handle on one worker process."""

    def __init__(self, context: mp.context.SpawnContext, setting: Setting, index: int, stop: object) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(setting, index, theirs, stop), name=f"fasttransfer-{index}", daemon=True
        )
        # A worker starts with the signals blocked that it will ignore: a Ctrl-C meanwhile, which all processes hear,
        # would end it with a stack trace and the study with it. Ours are delivered when they are let in again.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def end(self) -> None:
        """Ends the process: by itself when it waits for a job, else by force (its files are whole at any time)."""
        self.pipe.close()
        self.process.join(timeout=2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(setting: Setting, index: int, pipe: Connection, stop: threading.Event) -> None:
    """Main function of a worker process: jobs in, messages out, until the pipe closes."""
    for each in _STOPPING:  # the driver hears of it and asks us to stop
        signal.signal(each, signal.SIG_IGN)
    _die_with_parent()
    torch.set_num_threads(setting.study.threads)
    torch.backends.cudnn.deterministic = True
    if setting.study.device == "cuda":
        device = torch.device("cuda", index % torch.cuda.device_count())
        torch.cuda.set_device(device)  # streams and graphs are of the current one
    else:
        device = torch.device("cpu")
        machine.keep_freed_memory()
    try:
        while True:
            try:
                job: Job = pipe.recv()
            except EOFError:
                return
            build_cohort(setting, job.cells, device).run(pipe.send, stop.is_set, setting.checkpoint_seconds)
            pipe.send(_Free())
    except BrokenPipeError:
        return
    except InputError as error:
        pipe.send(_Failed(str(error), spoken=True))
    except Exception:
        pipe.send(_Failed(traceback.format_exc(), spoken=False))


def _die_with_parent() -> None:
    """Ends this process at once when the driver is gone, however it went."""
    parent = mp.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
