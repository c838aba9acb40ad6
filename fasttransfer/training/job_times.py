"""The speed of training on this machine: real cohorts, stepped for seconds in as many processes as will train.

A job's cohort is built on images of the store with initial values in place of trained bases, then trained and validated
through the very methods that a study uses. Nothing is written but one temporary file.
"""

from __future__ import annotations

import gc
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import NamedTuple

import numpy as np
import torch

from fasttransfer.core import devices, tensor_files
from fasttransfer.core.errors import InputError, os_reason
from fasttransfer.pipelines.store import Store, StorePart
from fasttransfer.pipelines.streams import Batch, Feed, TaskImages
from fasttransfer.study.configuration import Study
from fasttransfer.study.feeds import study_feed
from fasttransfer.training.cohort import Cohort, CohortTask
from fasttransfer.training.draws import image_stream, start_weights
from fasttransfer.training.planning import TrainingJob
from fasttransfer.training.transfer import source_weights

SECONDS = 4.0
"""How long each job is timed, building and warming up not counted."""

_LONGEST = 1.2  # seconds: where a step would take longer, fewer images are timed
_FEW = 8  # images of a first, short step
_IMAGES = 4096  # of the store, that are read at the most


class JobTimes(NamedTuple):
    """Seconds that one of several workers takes for a job, all of them busy.

    Attributes:
        build: to build its cohort.
        step: a training step of the recipe's batch, images included.
        image: a validation image.
    """

    build: float
    step: float
    image: float


class MachineTimes(NamedTuple):
    """Seconds that one of several workers takes, all of them busy.

    Attributes:
        start: of a process, until it can train.
        write: to write a byte of a network.
        alone: the share of this that a step takes when no other worker is busy, at most 1.
        jobs: `TrainingJob.shape` -> what jobs of this shape take.
    """

    start: float
    write: float
    alone: float
    jobs: Mapping[TrainingJob, JobTimes]


def time_jobs(
    study: Study, jobs: Sequence[TrainingJob], store: Path, workers: int, seconds: float = SECONDS
) -> MachineTimes:
    """Time one job of each shape among `jobs` in `workers` processes at once.

    Args:
        store: of images like those that will be trained on.
        seconds: how long each is timed.

    Raises:
        InputError: the disk is full; the machine gives no semaphores.
        RuntimeError: a process failed.
    """
    rounds = _rounds(list(dict.fromkeys(job.shape for job in jobs)), workers)
    context = mp.get_context("forkserver")  # as workers start
    context.set_forkserver_preload([__name__])
    try:
        pool = ProcessPoolExecutor(workers, context, initializer=_join, initargs=(context.Barrier(workers),))
    except OSError as refused:
        raise InputError(
            f"times cannot be measured: there is no shared memory ({os_reason(refused)}): make /dev/shm writable, or "
            "train without an estimate"
        ) from refused
    with pool:
        own = [[each[index] for each in rounds] for index in range(workers)]
        futures = [pool.submit(_time_all, study, own[i], store, i, seconds, time.time()) for i in range(workers)]
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, BrokenBarrierError)), errors[0])
    measured = [future.result() for future in futures]
    samples: dict[TrainingJob, list[JobTimes]] = {}
    for worker in measured:
        for job, times in worker.jobs.items():
            samples.setdefault(job, []).append(times)
    return MachineTimes(
        statistics.mean(worker.start for worker in measured),
        statistics.mean(worker.write for worker in measured),
        min(1.0, measured[0].alone),
        {job: JobTimes(*map(statistics.mean, zip(*times, strict=True))) for job, times in samples.items()},
    )


def _rounds(shapes: Sequence[TrainingJob], workers: int) -> list[list[TrainingJob]]:
    """Return what all workers time beside each other, in rounds: bases apart from copies, as they are trained."""
    rounds = []
    for kind in ([s for s in shapes if not s.cells[0].n], [s for s in shapes if s.cells[0].n]):
        for first in range(0, len(kind), workers):
            some = kind[first : first + workers]
            rounds.append([some[index % len(some)] for index in range(workers)])
    return rounds


_barrier: Barrier  # in a process of the pool, the one of all its processes


def _join(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _time_all(
    study: Study, jobs: Sequence[TrainingJob], store: Path, index: int, seconds: float, submitted: float
) -> MachineTimes:
    """Time `jobs` one after another, each while all other processes time theirs; the first one also alone."""
    start = time.time() - submitted
    try:
        _barrier.wait()  # so that every process takes one of these calls
        device = devices.configure_process(study.device, study.threads, index)
        with tempfile.TemporaryDirectory(prefix="fasttransfer-") as scratch:
            write, alone, times = _time_writing(Path(scratch), jobs[0]), 1.0, dict[TrainingJob, JobTimes]()
            for job in jobs:
                begun = time.perf_counter()
                cohort = _TimedCohort(study, job, Store.open(store), Path(scratch), device)
                build = time.perf_counter() - begun
                with closing(cohort):
                    cohort.warm_up()
                    _barrier.wait()
                    step, image = cohort.measure(seconds)
                    if not times:
                        _barrier.wait()
                        if index == 0:
                            alone = cohort.measure(seconds / 8)[0] / step
                        _barrier.wait()
                times[job] = JobTimes(build, step, image)
                del cohort
                gc.collect()
        return MachineTimes(start, write, alone, times)
    except BaseException:
        _barrier.abort()
        raise


def _time_writing(folder: Path, job: TrainingJob) -> float:
    """Return the seconds that writing takes per byte, in a file of a network's size."""
    network = torch.zeros(job.network.weight_count(job.outputs))
    begun = time.perf_counter()
    tensor_files.save(folder / "network", {"weights": network}, {})
    return (time.perf_counter() - begun) / network.nbytes


class _TimedCohort:
    """The cohort of a job, to be timed. Where a step is long, it sees only some images of each batch.

    Its feed makes whole batches all the same, so that a line through two numbers of images leads to what a whole step
    takes.
    """

    def __init__(self, study: Study, job: TrainingJob, store: Store, folder: Path, device: torch.device) -> None:
        cells, outputs, batch = job.cells, job.outputs, study.recipe.batch
        train = _select_images(store.train, outputs, _IMAGES)
        val = _select_images(store.val, outputs, batch)
        means = {study.means_of(cell): torch.zeros(store.size, store.size, 3) for cell in cells}
        feed = study_feed(study, device, None, train, val, image_stream(study, cells[0], len(train)), means)
        self._feed, self._val_images, self._device = _ShortFeed(feed), len(val), device
        task = CohortTask(cells[0].target, outputs, outputs, len(train), len(val), self._feed)
        drawn = partial(start_weights, study, "base", 0, cells[0].target, outputs, study.recipe.init)
        sources = source_weights(study, cells, outputs, lambda base: drawn(), drawn)
        self._cohort = Cohort(study, cells, task, sources, folder, device)
        self._steps = count()
        self._batch = batch
        self._sizes = [batch]  # numbers of images that steps are timed with, the largest first

    def warm_up(self) -> None:
        """Choose with how many images steps are timed, and do everything once that takes longer the first time."""
        if self._device.type == "cpu":  # a GPU is fast, and few images say little about it
            few = min(_FEW, self._batch)
            self._time_step(few)
            most = max(few, int(few * _LONGEST / self._time_step(few)))
            if most < self._batch:
                self._sizes = [most, most // 2]
        for size in self._sizes:
            for _ in range(3 if self._device.type == "cuda" else 1):
                self._time_step(size)
        self._time_validation()

    def measure(self, seconds: float) -> tuple[float, float]:
        """Return the seconds of a training step on a whole batch and of a validation image, each from two at least."""
        steps: dict[int, list[float]] = {size: [] for size in self._sizes}
        images: list[float] = []
        end = time.perf_counter() + seconds
        while len(images) < 2 or time.perf_counter() < end:
            for _ in range(1 if len(images) < 2 else 4):  # validation takes as few samples as training steps are many
                for size in self._sizes:
                    steps[size].append(self._time_step(size))
            images.append(self._time_validation())
        most, *fewer = self._sizes
        step = statistics.median(steps[most])
        for size in fewer:
            each = (step - statistics.median(steps[size])) / (most - size)
            step += max(0.0, each) * (self._batch - most)
        return step, statistics.median(images)

    def close(self) -> None:
        self._feed.close()

    def _time_step(self, images: int) -> float:
        self._feed.count = images
        return self._time(lambda: self._cohort.train_step(next(self._steps)))

    def _time_validation(self) -> float:
        self._feed.count = min(self._sizes[0], self._val_images)
        return self._time(self._cohort.validate) / self._feed.count

    def _time(self, function: Callable[[], object]) -> float:
        """Return the seconds that a call takes, a GPU's work included."""
        begun = time.perf_counter()
        function()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun


class _ShortFeed:
    """The first `count` images of every batch of a feed."""

    def __init__(self, feed: Feed) -> None:
        self._feed, self.count = feed, 0

    def train(self, step: int) -> Batch:
        return self._shorten(self._feed.train(step))

    def val(self) -> Iterator[Batch]:
        return map(self._shorten, self._feed.val())

    def close(self) -> None:
        self._feed.close()

    def _shorten(self, batch: Batch) -> Batch:
        images = {task: x[: self.count] for task, x in batch.images.items()}
        return batch._replace(images=images, labels=batch.labels[: self.count])


def _select_images(part: StorePart, outputs: int, most: int) -> TaskImages:
    """Return at most so many images from all over a part, with labels that mean nothing."""
    rows = np.arange(len(part))[:: max(1, -(-len(part) // most))]
    return TaskImages(part, rows, rows % outputs)
