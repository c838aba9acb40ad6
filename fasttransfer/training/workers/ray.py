"""Actors of a Ray cluster: one per GPU, or one per as many cores as a network is trained with.

The cluster is the one that RAY_ADDRESS names, else this machine for as long as the study takes. Study, images and
cache lie on a file system that all its machines share.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fasttransfer.core import devices, machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines.store import Store
from fasttransfer.study import paths
from fasttransfer.study.configuration import Study
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.planning import TrainingJob
from fasttransfer.training.workers import worker_loop
from fasttransfer.training.workers.worker_loop import WorkerFree, WorkerLost, WorkerMessage

# Ray prints nothing on our console, not even that a worker died: the study reports that itself.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
for _name, _value in _QUIET.items():  # read when Ray is imported
    os.environ.setdefault(_name, _value)
# `ray start` asks for a token where this machine has one, but `ray.init` shows none unless told to. A cluster that asks
# for none takes no offence at one.
_TOKENS = (os.environ.get("RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token")
_has_token = os.environ.get("RAY_AUTH_TOKEN") or any(path and Path(path).is_file() for path in _TOKENS)
if _has_token and "ray" not in sys.modules:  # it reads the mode once
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray  # noqa: E402

_HERE = "local"
_OBJECTS = 80 << 20  # bytes of Ray's object store, for messages, which are small; Ray refuses less
_PATIENCE = 5.0  # seconds that the cluster has to answer
_LONGEST = 10.0  # seconds until a worker that has no message answers so


class RayWorkers:
    """Actors of a cluster, see `WorkerPool`. They get their GPUs and cores from Ray.

    Raises:
        InputError: the cluster does not answer, or has no machine that a network can be trained on.
    """

    def __init__(self, setting: StudyContext) -> None:
        # Other machines have other working folders.
        self._setting = replace(
            setting,
            folder=setting.folder.absolute(),
            stores={task: store.absolute() for task, store in setting.stores.items()},
        )
        self._joined = _join_cluster()
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}  # a call of `take_messages` that has not returned -> its worker
        self._started = 0
        study = setting.study
        # Work on a GPU keeps a core busy, but GPUs are scarcer.
        self._needs = {"num_gpus": 1, "num_cpus": 0} if study.device == "cuda" else {"num_cpus": study.threads}
        try:
            self.size = _count_workers(*(("GPU", 1) if study.device == "cuda" else ("CPU", study.threads)))
        except InputError:
            self.close()
            raise

    def start_worker(self) -> None:
        actor = ray.remote(_WorkerActor).options(max_concurrency=3, **self._needs)
        self._started += 1
        self._actors[self._started] = actor.remote(self._setting, str(cache_folder().absolute()))
        self._request_messages(self._started)

    def assign_job(self, worker: int, job: TrainingJob) -> None:
        self._actors[worker].train.remote(job)

    def receive(self, seconds: float) -> Sequence[tuple[int, WorkerMessage]]:
        ready, _ = ray.wait(list(self._pending), timeout=seconds)
        messages: list[tuple[int, WorkerMessage]] = []
        for call in ready:
            worker = self._pending.pop(call)
            try:
                received: Sequence[WorkerMessage] = ray.get(call)
            except ray.exceptions.RayTaskError:  # a bug in `take_messages`
                raise
            except ray.exceptions.RayError as error:
                ray.kill(self._actors.pop(worker))  # it may only be out of reach
                messages.append((worker, _describe_loss(error)))
            else:
                messages += [(worker, message) for message in received]
                self._request_messages(worker)
        return messages

    def _request_messages(self, worker: int) -> None:
        self._pending[self._actors[worker].take_messages.remote()] = worker

    def stop(self) -> None:
        for actor in self._actors.values():
            actor.stop.remote()

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        if self._joined:
            ray.shutdown()


def _join_cluster() -> bool:
    """Join the cluster, or start one on this machine; return False where this process is in one already."""
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS", _HERE)
    here: dict[str, Any] = {
        "num_cpus": machine.cores(),
        "num_gpus": torch.cuda.device_count(),
        "object_store_memory": _OBJECTS,
        "include_dashboard": False,
    }
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for many minutes
            socket.create_connection((host, int(port)), _PATIENCE).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(here if address == _HERE else {}))
    except OSError as error:
        if address == _HERE:
            raise
        raise InputError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error).splitlines()[0]}): start one with "
            "ray start --head, copy its token (~/.ray/auth_token) to this machine where it asks for one, or unset "
            "RAY_ADDRESS to use this machine alone"
        ) from error
    return True


def _count_workers(resource: str, count: int) -> int:
    """Return how many workers the cluster has room for, each with `count` of a resource on one machine.

    Raises:
        InputError: none.
    """
    free = sum(int(node["Resources"].get(resource, 0)) // count for node in ray.nodes() if node["Alive"])
    if not free:
        raise InputError(f"no machine of the Ray cluster has {count} {resource}: add one, or choose another --device")
    return free


def _describe_loss(error: Exception) -> WorkerLost:
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return WorkerLost("Ray, whose machine was short of memory", memory=True)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((f" on {line.removeprefix('ip: ')}" for line in lines if line.startswith("ip: ")), "")
    # The last line has the cause, followed by whole sentences of advice.
    return WorkerLost(f"{lines[-1].split('. ')[0]}{where}" if lines else type(error).__name__)


class _WorkerActor:
    """A worker: trains in one of its threads, answers the driver in others."""

    def __init__(self, setting: StudyContext, cache: str) -> None:
        self._setting = setting
        self._messages: queue.SimpleQueue[WorkerMessage] = queue.SimpleQueue()
        self._stop = threading.Event()
        os.environ["FASTTRANSFER_CACHE"] = cache  # the driver's, whatever this machine has by default
        if _can_see_files(setting):
            self._messages.put(WorkerFree())
        else:
            stores = " and ".join(map(str, dict.fromkeys(setting.stores.values())))
            text = (
                f"machine {platform.node()} of the Ray cluster does not see the study {setting.folder} and its images "
                f"{stores}: keep both on a file system that all machines share (--out, and FASTTRANSFER_CACHE for "
                "images)"
            )
            self._messages.put(InputError(text))

    def train(self, job: TrainingJob) -> None:
        study = self._setting.study
        device = devices.configure_process(study.device, study.threads, 0)
        worker_loop.train_job(self._setting, job, device, self._messages.put, self._stop.is_set)

    def take_messages(self) -> list[WorkerMessage]:
        """Return the messages there are, as soon as there is one."""
        try:
            messages = [self._messages.get(timeout=_LONGEST)]
        except queue.Empty:
            return []
        while not self._messages.empty():
            messages.append(self._messages.get())
        return messages

    def stop(self) -> None:
        self._stop.set()


def _can_see_files(setting: StudyContext) -> bool:
    """Return whether this machine sees the study's folder and images, the very same."""
    try:
        study = Study.read(paths.study_file(setting.folder))
        digests = {task: Store.open(store).digest for task, store in setting.stores.items()}
    except (InputError, OSError):
        return False
    return study.digest() == setting.study.digest() and all(
        digest == setting.study.images_of(task) for task, digest in digests.items()
    )
