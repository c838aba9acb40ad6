"""Workers that train in the process of the test, in turn, for those of real ones take seconds to start."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fasttransfer.core import devices
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.planning import TrainingJob
from fasttransfer.training.workers import worker_loop
from fasttransfer.training.workers.worker_loop import WorkerFree, WorkerMessage


class WorkersHere:
    """A pool of such workers, see `fasttransfer.training.workers.WorkerPool`. It cannot be stopped amid a job."""

    def __init__(self, setting: StudyContext) -> None:
        self._setting = setting
        self._messages: deque[tuple[int, WorkerMessage]] = deque()
        self._started = 0

    @property
    def size(self) -> int:
        return devices.count_workers(self._setting.study.device, self._setting.study.threads)

    def start_worker(self) -> None:
        self._messages.append((self._started, WorkerFree()))
        self._started += 1

    def assign_job(self, worker: int, job: TrainingJob) -> None:
        def log(message: WorkerMessage) -> None:
            self._messages.append((worker, message))

        study = self._setting.study
        device = devices.configure_process(study.device, study.threads, 0)
        worker_loop.train_job(self._setting, job, device, log, lambda: False)

    def receive(self, seconds: float) -> Sequence[tuple[int, WorkerMessage]]:
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass
