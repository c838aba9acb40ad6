"""Train the jobs of a study in worker processes of this machine or of a Ray cluster.

`schedule.py` decides what is trained when and what becomes of a job whose worker is lost; `local.py` and `ray.py` are
the two pools of workers; `worker_loop.py` is what a worker of either does. The driver alone writes records; workers
write weights and checkpoints.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from fasttransfer.core.errors import InputError
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.workers.local import LocalWorkers
from fasttransfer.training.workers.schedule import WorkerPool, run_jobs
from fasttransfer.training.workers.worker_loop import WorkerError

__all__ = ["Engine", "WorkerError", "WorkerPool", "open_workers", "require_engine", "run_jobs"]

Engine = Literal["local", "ray"]


def require_engine(engine: Engine) -> None:
    """Check that the engine is installed, before anything is prepared or trained.

    Raises:
        InputError: the package ray is not installed.
    """
    if engine == "ray" and find_spec("ray") is None:
        raise InputError("--engine ray needs the package ray: install it with pip install 'fasttransfer[ray]'")


def open_workers(engine: Engine, setting: StudyContext) -> WorkerPool:
    """Return a pool of workers for `setting`, none of them started yet; the caller closes it.

    Raises:
        InputError: the Ray cluster does not answer, or has no machine that a network can be trained on.
    """
    if engine == "local":
        return LocalWorkers(setting)
    from fasttransfer.training.workers.ray import RayWorkers  # which takes a second to import

    return RayWorkers(setting)
