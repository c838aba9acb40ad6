"""How fast this machine trains: a few steps, timed in as many processes at once as there will be workers.

Small layers run at other rates than large ones, and workers share the machine's memory and caches: neither follows from
multiply-adds. Hence one training step from each cut that the study's cells start from, a forward pass stage by stage,
batches of the feed, a network built and written, each as often as a few seconds allow.
"""

from __future__ import annotations

import math
import multiprocessing as mp
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.core import devices, randomness, tensor_files
from fasttransfer.networks import inputs
from fasttransfer.networks.caffenet import CaffeNet, StepDropout
from fasttransfer.networks.geometry import DROPOUT_STAGES, LAYER_NAMES, STAGES
from fasttransfer.pipelines.choose_feed import open_feed
from fasttransfer.pipelines.store import Store, StorePart
from fasttransfer.pipelines.streams import Feed, Stream, TaskImages
from fasttransfer.study.recipe import Recipe
from fasttransfer.training import cuda_graph
from fasttransfer.training.step import StageTrainer

SECONDS = 4.0
"""How long steps are timed, building and warming up not counted."""

_SAMPLE = 0.4  # seconds: where a step takes longer, fewer images are timed
_FEW = 8  # images of a first, short step
_TOGETHER = 64 << 20  # bytes of weights up to which all networks are built at once
_IMAGES = 4096  # of the store, that are fed
_DRAWS = 1 << 18


@dataclass(frozen=True)
class TimingRequest:
    """What is to be timed.

    Attributes:
        outputs: of the networks; starts: the cuts that cells are trained from, 0 for whole networks.
        tasks: whose means are subtracted, as many as a batch has forms.
        store: images like those that will be trained on.
    """

    recipe: Recipe
    outputs: int
    starts: tuple[int, ...]
    tasks: tuple[str, ...]
    store: Path
    precision: str
    device: str
    threads: int


@dataclass(frozen=True)
class StepTimes:
    """Seconds that one of several workers takes, all of them busy; steps and batches are of the recipe's size.

    Attributes:
        starting: of a process, until it can train.
        step: cut -> a training step of the stages behind it.
        forward: of stages 1 to 8, without gradients.
        feed, validation: a training and a validation batch.
        draw: an initial value; build: a network, without drawing its values; save: a byte of a network.
        alone: what share of this each takes when no other worker is busy.
    """

    starting: float
    step: Mapping[int, float]
    forward: tuple[float, ...]
    feed: float
    validation: float
    draw: float
    build: float
    save: float
    alone: float


def time_steps(sizes: TimingRequest, workers: int, seconds: float = SECONDS) -> StepTimes:
    """Times the parts of a training in `workers` processes at once.

    Raises:
        RuntimeError: a process failed: its stack trace.
    """
    context = mp.get_context("spawn")
    barrier = context.Barrier(workers)
    pipes, processes = [], []
    try:
        for index in range(workers):
            pipe, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(sizes, index, theirs, barrier, seconds, time.time()), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(pipe)
            processes.append(process)
        heard = [_heard(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    every: dict[str, float] = {name: statistics.mean(each[name] for each in heard if name in each) for name in heard[0]}
    return StepTimes(
        starting=every["starting"],
        step={start: every[f"step {start}"] for start in sizes.starts},
        forward=tuple(every[f"forward {stage}"] for stage in range(1, STAGES + 1)),
        feed=every["feed"],
        validation=every["validation"],
        draw=every["draw"],
        build=every["build"],
        save=every["save"],
        alone=min(1.0, every["alone"]),
    )


def _heard(pipe: Connection) -> dict[str, float]:
    try:
        heard = pipe.recv()
    except EOFError:
        raise RuntimeError("a process that times training steps ended") from None
    if isinstance(heard, str):
        raise RuntimeError(heard)
    assert isinstance(heard, dict)
    return heard


# -- in a process of its own ----------------------------------------------------------------------------------------


def _work(sizes: TimingRequest, index: int, pipe: Connection, barrier: Any, seconds: float, begun: float) -> None:
    found = {"starting": time.time() - begun}
    try:
        device = devices.configure_process(sizes.device, sizes.threads, index)
        pipe.send(found | _timed(sizes, device, barrier, seconds, index))
    except BaseException:
        barrier.abort()
        pipe.send(traceback.format_exc())


def _timed(sizes: TimingRequest, device: torch.device, barrier: Any, seconds: float, index: int) -> dict[str, float]:
    """Name of a part -> its seconds."""
    recipe = sizes.recipe
    shapes = recipe.geometry.weight_shapes(sizes.outputs)
    begin: dict[str, Tensor] = {}
    for name, shape in zip(LAYER_NAMES, shapes, strict=True):
        begin[f"{name}.weight"] = torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
        begin[f"{name}.bias"] = torch.zeros(shape[0])
    held = sum(w.nbytes for w in begin.values())
    found: dict[str, float] = {}
    groups = [list(sizes.starts)] if held <= _TOGETHER else [[start] for start in sizes.starts]
    samples: dict[str, list[float]] = {}
    with closing(_feed(sizes, device)) as feed:
        fed = _Fed(feed)
        for group in groups:
            begun = time.perf_counter()
            parts = [_Step(sizes, start, begin, device) for start in group]
            found.setdefault("build", (time.perf_counter() - begun) / len(group))
            others: list[Callable[[], Mapping[str, float]]] = [fed.train, fed.val] if group is groups[-1] else []
            if group is groups[-1]:
                others.append(_Forward(sizes, begin, device))
            for other in others:
                other()
            barrier.wait()
            _rounds([*parts, *others], seconds / len(groups), samples)
            if group is groups[0]:
                # Once more by one worker alone, the others wait.
                barrier.wait()
                if index == 0:
                    by_itself: dict[str, list[float]] = {}
                    _rounds(parts[:1], seconds / 8, by_itself)
                    name = f"step {group[0]}"
                    found["alone"] = statistics.median(by_itself[name]) / statistics.median(samples[name])
                barrier.wait()
            del parts
    begun = time.perf_counter()
    randomness.normal(0, (_DRAWS,))
    found["draw"] = (time.perf_counter() - begun) / _DRAWS
    found["save"] = _saving(begin) / held
    return found | {name: statistics.median(taken) for name, taken in samples.items()}


def _rounds(
    parts: Sequence[Callable[[], Mapping[str, float]]], seconds: float, samples: dict[str, list[float]]
) -> None:
    """Every part in turn, as the cells of a cohort are, until the time is up, but each twice."""
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        for part in parts:
            for name, taken in part().items():
                samples.setdefault(name, []).append(taken)
        rounds += 1


class _Step:
    """A training step from a cut, timed; one that is long, with fewer images than the recipe's."""

    def __init__(self, sizes: TimingRequest, start: int, begin: Mapping[str, Tensor], device: torch.device) -> None:
        self._name, self._start, self._sizes, self._device = f"step {start}", start, sizes, device
        recipe = sizes.recipe
        self._whole = recipe.batch
        net = CaffeNet(recipe.geometry, sizes.outputs, inputs.dtype_of(sizes.precision)).to(device)
        self._trainee = StageTrainer(net, start, begin, recipe)
        self._at = torch.zeros((), dtype=torch.int64, device=device)
        self._drop = StepDropout({stage: stage for stage in DROPOUT_STAGES}, self._at, recipe.dropout)
        self._lr = torch.zeros((), device=device)
        few = min(_FEW, self._whole)
        # A GPU is fast, and few images say little about it.
        first = 0.0 if device.type == "cuda" else self._seconds(self._run_of(few), 2)
        self._batch = min(self._whole, max(few, int(few * _SAMPLE / first))) if first else self._whole
        self._runs = [self._run_of(self._batch)]
        if self._batch < self._whole:
            self._runs.append(self._run_of(self._batch // 2))
        for run in self._runs:
            self._seconds(run, 3 if device.type == "cuda" else 1)

    def __call__(self) -> dict[str, float]:
        taken = self._seconds(self._runs[0])
        if self._batch < self._whole:  # what one image more takes, as often as there are more
            half = self._batch // 2
            each = max(0.0, taken - self._seconds(self._runs[1])) / (self._batch - half)
            taken += (self._whole - self._batch) * each
        return {self._name: taken}

    def _run_of(self, count: int) -> Callable[[], None]:
        """A step on `count` random images."""
        x = _cut(self._sizes, self._start, count, self._device)
        given = {"x": x, "labels": torch.randint(self._sizes.outputs, (count,), device=self._device)}

        def step(batch: Mapping[str, Tensor]) -> None:
            self._trainee.step(batch["x"], batch["labels"], self._drop, self._lr)

        run = cuda_graph.RecordedGraph(step) if self._device.type == "cuda" else step
        return lambda: run(given)

    def _seconds(self, run: Callable[[], None], times: int = 1) -> float:
        """Of the last of so many runs."""
        for _ in range(times):
            with _clock(self._device) as taken:
                run()
        return taken[0]


class _Forward:
    """A forward pass without gradients, timed stage by stage."""

    def __init__(self, sizes: TimingRequest, begin: Mapping[str, Tensor], device: torch.device) -> None:
        recipe = sizes.recipe
        self._net = CaffeNet(recipe.geometry, sizes.outputs, inputs.dtype_of(sizes.precision))
        self._net.load(begin)
        self._net.to(device)
        # Forward passes are in proportion to their images from few on.
        count = min(recipe.batch, 32) if device.type == "cpu" else recipe.batch
        self._x, self._share, self._device = _cut(sizes, 0, count, device), recipe.batch / count, device
        self._labels = torch.zeros(count, dtype=torch.int64, device=device)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        found, x = {}, self._x
        for number, stage in enumerate(self._net.stages, start=1):
            with _clock(self._device) as taken:
                x = stage(x)
                if number == STAGES:
                    F.cross_entropy(x.float(), self._labels, reduction="sum")
                    (x.argmax(dim=1) == self._labels).sum()
            found[f"forward {number}"] = self._share * taken[0]
        return found


class _Fed:
    """Batches of a feed, timed."""

    def __init__(self, feed: Feed) -> None:
        self._feed, self._step, self._val = feed, 0, feed.val()

    def train(self) -> dict[str, float]:
        with _clock(None) as taken:
            self._feed.train(self._step)
        self._step += 1
        return {"feed": taken[0]} if self._step > 1 else {}

    def val(self) -> dict[str, float]:
        with _clock(None) as taken:
            batch = next(self._val, None)
        if batch is None:
            self._val = self._feed.val()
            return {}
        return {"validation": taken[0]}


def _feed(sizes: TimingRequest, device: torch.device) -> Feed:
    """A feed of some of the store's images, spread over all of it."""
    recipe, store = sizes.recipe, Store.open(sizes.store)
    geometry = recipe.geometry
    train, val = (_some(part, recipe.batch, sizes.outputs) for part in (store.train, store.val))
    return open_feed(
        train,
        val,
        Stream(0, 1, len(train), recipe.batch, geometry.store - geometry.crop),
        {task: torch.zeros(geometry.store, geometry.store, 3) for task in sizes.tasks},
        device=device,
        threads=sizes.threads,
        crop=geometry.crop,
        scale=recipe.scale,
        **inputs.choose_input_form(geometry, device.type, sizes.precision),
    )


def _some(part: StorePart, batch: int, outputs: int) -> TaskImages:
    """Rows of a part, a whole batch at least: of a small sample each comes more than once."""
    rows = np.arange(len(part))[:: max(1, len(part) // _IMAGES)]
    rows = np.tile(rows, -(-batch // len(rows)))
    return TaskImages(part, rows, rows % outputs)


def _cut(sizes: TimingRequest, start: int, count: int, device: torch.device) -> Tensor:
    """Random values at a cut: as a feed, a stage or a source hands them on."""
    geometry, dtype = sizes.recipe.geometry, inputs.dtype_of(sizes.precision)
    if start == 0:
        entrance = inputs.choose_input_form(geometry, device.type, sizes.precision)
        x = torch.randn(count, 3 * entrance["block"] ** 2, entrance["side"], entrance["side"])
    else:
        x = torch.randn(count, *geometry.cut_shape(start)).relu()
    x = x.to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _saving(tensors: Mapping[str, Tensor]) -> float:
    """Seconds that writing these takes, all on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        tensor_files.save(Path(folder) / "weights", tensors, {})
        return time.perf_counter() - begun


@contextmanager
def _clock(device: torch.device | None) -> Iterator[list[float]]:
    """Puts the seconds of its block into the list, a GPU's work included (of all of it where none is named)."""
    taken = [0.0]
    begun = time.perf_counter()
    yield taken
    if (device is None and torch.cuda.is_initialized()) or (device is not None and device.type == "cuda"):
        torch.cuda.synchronize()
    taken[0] = time.perf_counter() - begun
