"""Worker processes of this machine: one per GPU, or as many as its cores allow."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from fasttransfer.core import devices
from fasttransfer.core.errors import InputError, os_reason
from fasttransfer.core.interrupts import STOPPING
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.planning import TrainingJob
from fasttransfer.training.workers import worker_loop
from fasttransfer.training.workers.worker_loop import WorkerFree, WorkerLost, WorkerMessage


class _WorkerProcess(NamedTuple):
    pipe: Connection
    process: mp.context.ForkServerProcess


class LocalWorkers:
    """Worker processes, see `WorkerPool`. A GPU that lost its worker gets the next one."""

    def __init__(self, setting: StudyContext) -> None:
        self._setting = setting
        # Workers are forks of one process that imports this module once, which takes seconds, and uses no GPU.
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._workers: dict[int, _WorkerProcess] = {}
        self._kills = _kills_for_memory()

    @property
    def size(self) -> int:
        return devices.count_workers(self._setting.study.device, self._setting.study.threads)

    def start_worker(self) -> None:
        number = next(n for n in range(len(self._workers) + 1) if n not in self._workers)
        pipe, theirs = self._context.Pipe()
        work = self._setting, number, theirs, dict(os.environ)
        process = self._context.Process(target=_work, args=work, name=f"fasttransfer-{number}", daemon=True)
        # A worker starts with the signals blocked that it will ignore: a Ctrl-C meanwhile, which all processes get,
        # would end it with a stack trace and the study with it. Ours are delivered once they are unblocked. Python
        # starts another process with the first worker, and unblocks signals after that.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            process.start()
        except (OSError, EOFError) as error:  # the latter where the process that forks it has ended
            why = os_reason(error) if isinstance(error, OSError) else "its process has ended"
            raise InputError(
                f"worker {number + 1} cannot be started ({why}): see whether memory, or the number of "
                "processes or open files that you may have, is short; the same command goes on"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._workers[number] = _WorkerProcess(pipe, process)

    def assign_job(self, worker: int, job: TrainingJob) -> None:
        self._send(worker, job)

    def _send(self, worker: int, job: TrainingJob | None) -> None:
        with suppress(OSError):  # a worker that is gone closes its pipe, which `receive` sees
            self._workers[worker].pipe.send(job)

    def receive(self, seconds: float) -> Sequence[tuple[int, WorkerMessage]]:
        messages: list[tuple[int, WorkerMessage]] = []
        numbers = {worker.pipe: number for number, worker in self._workers.items()}
        for pipe in wait(list(numbers), timeout=seconds):
            assert isinstance(pipe, Connection)
            number = numbers[pipe]
            try:
                messages.append((number, pipe.recv()))
            except (EOFError, OSError):  # the latter where it had not read its job yet, or was amid a message
                messages.append((number, self._lose(number)))
        return messages

    def _lose(self, number: int) -> WorkerLost:
        process = self._workers.pop(number).process
        process.join()
        before, self._kills = self._kills, _kills_for_memory()
        code = process.exitcode
        if code == -signal.SIGKILL and self._kills > before:
            return WorkerLost("the system, which was short of memory", memory=True)
        return WorkerLost(f"signal {-code}" if code is not None and code < 0 else f"exit code {code}")

    def stop(self) -> None:
        for worker in self._workers:
            self._send(worker, None)

    def close(self) -> None:
        for pipe, process in self._workers.values():
            pipe.close()  # which ends a worker that waits for a job
            process.join(timeout=2.0)
            if process.is_alive():
                process.kill()
                process.join()


def _kills_for_memory() -> int:
    """Return how many processes the system has ended so far because memory was short; 0 where it does not count."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _work(setting: StudyContext, index: int, pipe: Connection, environment: Mapping[str, str]) -> None:
    """Run a worker process: jobs in, messages out, until the pipe closes.

    It gets the driver's `environment`: that of the process it is a fork of may be older.
    Whatever comes while it trains, None or the end of the pipe, is the request to stop: unlike an event of
    `multiprocessing`, a pipe needs no shared memory, which a container may lack.
    """
    os.environ.clear()
    os.environ.update(environment)
    for each in STOPPING:  # the driver gets them and sets `stop`
        signal.signal(each, signal.SIG_IGN)
    _die_with_parent()

    def log(message: WorkerMessage) -> None:
        try:
            pipe.send(message)
        except ConnectionError:  # the driver has closed it
            raise SystemExit from None

    device = devices.configure_process(setting.study.device, setting.study.threads, index)
    log(WorkerFree())
    while True:
        try:
            job: TrainingJob | None = pipe.recv()
        except (EOFError, ConnectionError):
            return
        if job is not None:
            worker_loop.train_job(setting, job, device, log, pipe.poll)


def _die_with_parent() -> None:
    """End this process at once when the driver has ended, whatever ended it."""
    parent = mp.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
